"""The training loop that every rank runs, for pretraining and for fine-tuning alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.draws import hash64
from pipeline.errors import BudgetExceeded, RunError
from pipeline.recipe.training import Optimizer
from pipeline.rendering.quarantine import Quarantine
from pipeline.rendering.units import UnitSource
from pipeline.storage import is_local
from trainers.learning.adversary import one_sided
from trainers.learning.collapse import Collapsed, collapsed
from trainers.learning.divergence import Diverged, FiniteCheck, diverged
from trainers.learning.gradients import WITHOUT_BUFFERS, accumulate
from trainers.learning.history import History
from trainers.learning.ledger import Ledger
from trainers.learning.optim import learning_rate, place
from trainers.learning.rank_stream import FEED_STAGES, RankStream, cause
from trainers.learning.ranks import gathered, summed
from trainers.learning.update import Update
from trainers.networks.inputs import decodable, to_device
from trainers.networks.precision import checked, compute_dtype
from trainers.objectives import Outcome
from trainers.running.checkpoints import Checkpoints, State
from trainers.running.runs import RunFolder

_COUNT = "/count"
"""What follows the name of a metric in the name of its own count."""

_CHECKED_ROWS = 16
"""Samples of a batch on which reduced precision is compared with float32."""


@dataclass(frozen=True)
class TrainingJob:
    """Everything that a rank needs for training: data, network, objectives, optimizer, and where checkpoints and log go.

    Args:
        stage: name of the stage in logs, such as `pretrain`.
        folder: URL of the folder of its checkpoints, see `RunFolder.checkpoints`.
        source: the data; its schedule has all epochs, its `step` is 0.
        build: builds the network; called on every rank, and gives the same weights each time. Its forward is as described in
            `trainers.learning.gradients`.
        objectives: names of the objectives.
        optimizer: the recipe's optimizer section.
        run_log: the run log, where rank 0 writes its log lines.
        accumulate: number of parts in which each rank computes a batch.
    """

    stage: str
    folder: str
    source: UnitSource
    build: Callable[[], nn.Module]
    objectives: tuple[str, ...]
    optimizer: Optimizer
    run_log: Any
    accumulate: int = 1

    def checkpoints(self) -> Checkpoints:
        """The checkpoints of this stage."""
        return Checkpoints(self.folder, self.source.recipe.training.keep)

    def state(self) -> State:
        """Load the last checkpoint of a finished run (`model`, `history`, `quarantine`, `stages`; see `summary`).

        The checkpoints before it are deleted, since they are not needed any more.

        Raises:
            RunError: there is no checkpoint, or the last one is damaged.
        """
        checkpoints = self.checkpoints()
        name = checkpoints.newest()
        if name is None:
            raise RunError(f"{self.stage} has left no checkpoint that can be read")
        state = checkpoints.load(name)
        if state["step"] != self.source.schedule.steps:
            raise RunError(f"{self.stage}: its last checkpoint is damaged; the same command resumes from the one before")
        checkpoints.discard_all_but(name)
        return state


def train(job: TrainingJob, enough: Callable[[], bool] | None = None) -> nn.Module | None:
    """Train to the end of the schedule, from the last checkpoint if there is one; must be called inside a Ray Train worker.

    Args:
        job: what to train.
        enough: called after each step on every rank; training ends where it says so, which must be after the same step on all.

    Returns:
        The trained network, or None if the run was stopped because too many samples were bad, a loss or gradient was not
        finite, or a task had collapsed.
    """
    try:
        return _Run(job).run(enough)
    except (BudgetExceeded, Collapsed, Diverged) as error:
        # Every rank sees the same sums, so every rank comes here at the same step.
        import ray

        ray.get(job.run_log.set_error.remote(error))
        return None


class _Run:
    def __init__(self, job: TrainingJob) -> None:
        import ray
        import ray.train
        import ray.train.torch

        self._job, self._context = job, ray.train.get_context()
        self._rank, self._world = self._context.get_world_rank(), self._context.get_world_size()
        recipe = job.source.recipe
        self._device = ray.train.torch.get_device()
        self._model = place(job.build(), self._device)
        self._parallel: nn.Module = self._model
        if self._world > 1:  # buffers are equal on all ranks or, like running statistics, not used in training
            self._parallel = ray.train.torch.prepare_model(self._model, parallel_strategy_kwargs=WITHOUT_BUFFERS)
        steps, batch = job.source.schedule.steps, job.source.schedule.geometry.batch
        self._update = Update(self._model, job.optimizer, steps, batch)
        self._quarantine = Quarantine(recipe.failures.budget, job.source.corpus.samples)
        self._history, self._line = History(), _LogLine()
        self._share = job.source.schedule.geometry.batch / self._world  # a rank's even share of a batch, in samples
        self._trained = np.zeros(len(job.source.schedule.portions), np.int64)  # samples of each corpus of a mixture
        self._waits: dict[str, float] = {}
        self._checkpoints = job.checkpoints()
        self._before = dict.fromkeys(
            (*FEED_STAGES, "total", "samples"), 0.0
        )  # seconds and samples before the run was interrupted
        self._step, self._seconds = 0, 0.0
        self._warned = False  # whether the present collapse has been logged
        self._one_sided = False  # the same of a discriminator that is always right or always wrong
        checkpoint = self._restore()
        self._precision = recipe.training.precision
        self._finite = FiniteCheck(self._model, job.objectives, self._device)
        self._ledger = self._open_ledger()
        if self._rank == 0:
            actors = recipe.placement.actors + (self._world if recipe.placement.render == "trainer" else 0)
            origin = f" of {job.source.schedule.steps} (checkpoint {checkpoint})" if checkpoint else ""
            ray.get(job.run_log.begin.remote(self._step, self._world, actors, origin))

    def run(self, enough: Callable[[], bool] | None = None) -> nn.Module:
        job, schedule, spec = self._job, self._job.source.schedule, self._job.source.recipe.training
        checkpoint_steps = max(1, round(spec.checkpoint_epochs * schedule.steps_per_epoch))
        feed = RankStream([replace(job.source, step=self._step)], self._rank, self._world, job.run_log)
        self._parallel.train()
        tally = _StepTally(job.objectives, self._device)
        started = settled = time.perf_counter()
        is_checked = False
        for step, columns in feed:
            if not is_checked:
                self._check_precision(columns)
                is_checked = True
            tally.failures += [text for text in columns["failure"] if text]
            if self._ledger:
                self._ledger.write(step, columns["id"])
            self._advance(columns, tally)
            self._step = step + 1
            saves = self._step % checkpoint_steps == 0 or self._step == schedule.steps
            logs = is_logged(self._step, schedule.steps, spec.log_steps)
            if saves or logs:  # before each checkpoint too, since it stops the run if a loss or gradient is not finite
                now = time.perf_counter()
                self._settle(tally, now - settled, feed)
                tally, settled = _StepTally(job.objectives, self._device), now
            if logs:
                self._log()
            if saves:
                self._checkpoint(feed, time.perf_counter() - started)
            if enough and enough():
                break
        self._checkpoints.wait()
        return self._model

    def _advance(self, columns: dict[str, Any], tally: _StepTally) -> None:
        # Dropout is a function of the step, too, so no state of a generator has to be kept.
        torch.manual_seed(hash64("network", self._job.source.recipe.seed, self._step, self._rank))
        self._update.begin(self._step)
        # Sums are divided by a rank's even share. The mean over ranks is then the mean over the batch, on whichever rank a bad
        # sample is, and even if one rank has a lane more than another.
        outcomes = accumulate(self._parallel, self._job.objectives, columns, self._share, self._precision, self._job.accumulate)
        self._finite.look(self._step, outcomes)
        self._update.finish()
        tally.add(outcomes, columns)

    def _check_precision(self, columns: dict[str, Any]) -> None:
        """Switch to float32 if this processor's bfloat16 results on this network differ too much from it."""
        batch = to_device(decodable({name: column[:_CHECKED_ROWS] for name, column in columns.items()}), self._device)

        def run() -> None:
            for name in self._job.objectives:
                self._model(batch, name)

        self._model.eval()
        self._precision, why = checked(self._device, self._precision, run)
        self._parallel.train()
        if why:
            self._job.run_log.note.remote(f"rank {self._rank}: {why}", self._step)

    def _check_finite(self) -> None:
        found = [one for one in gathered([self._finite.found()], self._world) if one is not None]
        if found:
            dtype = compute_dtype(self._device, self._precision)
            first, schedule = min(found), self._job.source.schedule
            rate = learning_rate(self._job.optimizer, first.step - 1, schedule.steps, schedule.geometry.batch)
            raise diverged(first, str(dtype).removeprefix("torch."), rate)

    def _settle(self, tally: _StepTally, seconds: float, feed: RankStream) -> None:
        """Add the counts of all ranks to the current log line."""
        waits = torch.tensor(list(feed.since_last().values()), dtype=torch.float64, device=self._device)
        totals = summed(tally.values, self._world)
        spent = dict(zip(FEED_STAGES, summed(waits, self._world).tolist()))
        self._trained += sum(gathered([np.bincount(tally.corpora, minlength=len(self._trained))], self._world))
        self._quarantine.add(int(totals[0].item()), gathered(tally.failures, self._world))
        self._check_finite()
        self._line.add(totals[0].item(), seconds, spent, dict(tally.by_objective(totals)))

    def _log(self) -> None:
        line, place = self._line, self._job.source.recipe.placement
        wait = line.spent["wait"] / self._world
        wait_cause = cause(line.spent, line.seconds, place, self._world)
        self._waits[wait_cause] = self._waits.get(wait_cause, 0.0) + wait
        record = {
            "stage": self._job.stage,
            "step": self._step,
            "steps": self._job.source.schedule.steps,
            "epoch": self._step / self._job.source.schedule.steps_per_epoch,
            "lr": self._update.scheduler.get_last_lr()[0],
            "samples_per_second": line.samples / line.seconds,
            "wait_share": wait / line.seconds,
            "wait_cause": wait_cause,
            "quarantined": len(self._quarantine),
            "tasks": {name: means(sums) for name, sums in line.sums.items()},
        }
        self._history.add({**record, "counts": {name: sums["count"] for name, sums in line.sums.items()}})
        self._line = _LogLine()
        if self._rank == 0:
            self._job.run_log.log.remote(record)
        self._check_collapse()
        self._check_discriminators()

    def _check_collapse(self) -> None:
        rule = self._job.source.recipe.failures.collapse
        collapse = None if rule == "off" else collapsed(self._history.recent, self._job.source.schedule.steps)
        if collapse and rule == "stop":
            raise Collapsed(f"at step {self._step} {collapse}; with failures.collapse: warn the run continues")
        if collapse and self._rank == 0 and not self._warned:
            self._job.run_log.note.remote(collapse, self._step)
        self._warned = bool(collapse)

    def _check_discriminators(self) -> None:
        found = one_sided(self._history.recent)
        if found and self._rank == 0 and not self._one_sided:
            self._job.run_log.note.remote(found, self._step)
        self._one_sided = bool(found)

    def _checkpoint(self, feed: RankStream, seconds: float) -> None:
        # Summed over all ranks: each has its own share of the samples, and its own stages.
        own = torch.tensor([*feed.seconds.values(), seconds, feed.samples], dtype=torch.float64, device=self._device)
        since = dict(zip(self._before, summed(own, self._world).tolist()))
        stages = {name: before + since[name] for name, before in self._before.items()}
        stages["samples"] = round(stages["samples"])
        if self._rank > 0:
            return
        steps = self._job.source.schedule.steps
        updates = {"optimizer": self._update.optimizer.state_dict(), "scheduler": self._update.scheduler.state_dict()}
        state = {
            "step": self._step,
            "steps": steps,
            "model": self._model.state_dict(),
            **(updates if self._step < steps else {}),  # not needed after the last step
            "history": self._history.state(),
            "line": asdict(self._line),
            "quarantine": self._quarantine.rows(),
            "trained": self._trained.tolist(),
            "stages": {
                **stages,
                "first_batch": feed.first_batch,
                "seconds": self._seconds + seconds,
                "waits": self._waits,
            },
        }
        self._checkpoints.save(self._step, state)

    def _restore(self) -> str | None:
        """Resume from the newest checkpoint, if there is one; returns its name."""
        from ray.train.collective import broadcast_from_rank_zero

        # Rank 0 looks for it, so that all ranks take the same one.
        name = broadcast_from_rank_zero(self._checkpoints.newest() if self._rank == 0 else None)
        if name is None:
            return None
        state = self._checkpoints.load(name, self._device)
        self._model.load_state_dict(state["model"])
        if "optimizer" in state:
            self._update.optimizer.load_state_dict(state["optimizer"])
            self._update.scheduler.load_state_dict(state["scheduler"])
        self._step, self._seconds = int(state["step"]), state["stages"]["seconds"]
        self._history, self._line = History(state["history"]), _LogLine(**state.get("line", {}))
        self._before = {name: state["stages"].get(name, 0.0) for name in self._before}
        self._trained, self._waits = np.array(state["trained"], np.int64), state["stages"]["waits"]
        self._quarantine.restore(state["quarantine"], state["step"] * self._job.source.schedule.geometry.batch)
        return str(name)

    def _open_ledger(self) -> Ledger | None:
        folder, tracking = RunFolder(self._job.source.recipe), self._job.source.recipe.tracking
        if not (tracking.samples and is_local(folder.url)):
            return None
        return Ledger(Path(folder.path("samples")) / self._job.stage, self._step, self._rank, self._world)


class _StepTally:
    """Sums since the last log line: samples, then the parts of each task's outcome; on the device, so that no step waits."""

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self.also: dict[str, list[str]] = {name: [] for name in names}
        self.failures: list[str] = []
        self.values = torch.zeros(1, dtype=torch.float64, device=device)
        self.corpora: np.ndarray = np.zeros(0, np.int64)

    def add(self, outcomes: dict[str, Outcome], columns: dict[str, Any]) -> None:
        if "corpus" in columns:
            self.corpora = np.concatenate([self.corpora, columns["corpus"][columns["weight"] > 0]])
        parts = [torch.tensor(float(len(columns["id"])), device=self.values.device)]
        for name, outcome in outcomes.items():
            self.also[name] = [*outcome.also, *(f"{key}{_COUNT}" for key in outcome.counts)]
            further = (*outcome.also.values(), *outcome.counts.values())
            parts += [outcome.loss.detach(), outcome.metric, outcome.trivial, outcome.count, *further]
        self.values = self.values + torch.stack([part.to(torch.float64) for part in parts])

    def by_objective(self, totals: torch.Tensor) -> Iterator[tuple[str, dict[str, float]]]:
        """The sums and the `count` of each objective, by name; `totals` are `values`, or their sum over ranks."""
        parts = iter(totals.tolist()[1:])
        for name, also in self.also.items():
            yield name, dict(zip(("loss", "metric", "trivial", "count", *also), islice(parts, 4 + len(also))))


@dataclass
class _LogLine:
    """Sums of all ranks for the next log line; they may have been begun before the checkpoint that the run resumed from."""

    samples: float = 0.0
    seconds: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)
    sums: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, samples: float, seconds: float, spent: dict[str, float], sums: dict[str, dict[str, float]]) -> None:
        """Add what was counted since the last call; arguments as the fields."""
        self.samples += samples
        self.seconds += seconds
        self.spent = _plus(self.spent, spent)
        self.sums = {name: _plus(self.sums.get(name, {}), values) for name, values in sums.items()}


def means(sums: dict[str, float]) -> dict[str, float]:
    """The means of an objective's sums, each over the samples that it counts; 0 where there are none."""
    values = {key: total for key, total in sums.items() if key != "count" and not key.endswith(_COUNT)}
    return {key: total / max(sums.get(f"{key}{_COUNT}", sums["count"]), 1) for key, total in values.items()}


def _plus(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {name: one.get(name, 0.0) + value for name, value in other.items()}


def is_logged(step: int, steps: int, every: int) -> bool:
    """Whether a log line is written after `step` steps: at even distances, and the last line never covers a few steps only."""
    left = steps - step
    return left == 0 or (step % every == 0 and 2 * left >= every)


def summary(state: State) -> dict[str, Any]:
    """Summarise a finished run's last checkpoint for reports.

    Returns:
        - `tasks`: for each task `loss`, `metrics` and the trivial answer's, `trivials`, along `step`, curves of bounded length;
          the last `metric`, the `trivial` one, and as `also` the last of the others; `margin`, by how much the metric exceeded
          the trivial one over the last lines, and `margin_error`, None if there were few lines.
        - `samples_per_second` of all ranks, `quarantined`, `steps`, `seconds`.
        - `stages`: the seconds of all ranks together in each stage and in `total`; the `samples` that they trained on; by the
          clock, the `seconds` of training and the seconds up to the `first_batch`; and as `waits` the seconds of waiting, by the
          stage that was waited for.
    """
    stages = state["stages"]
    return {
        "tasks": History(state["history"]).tasks(),
        "samples_per_second": stages["samples"] / stages["seconds"] if stages["seconds"] else 0.0,
        "quarantined": len(state["quarantine"]),
        "steps": state["step"],
        "seconds": stages["seconds"],
        "stages": stages,
    }
