"""The training loop that every rank runs, for pretraining and for fine-tuning alike."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.errors import BudgetExceeded, RunError
from pipeline.quarantine import Quarantine
from pipeline.recipe.schema import Optimizer
from pipeline.units import Source
from trainers.feed import Feed
from trainers.inputs import to_device
from trainers.optim import autocast, build_optimizer, place
from trainers.ranks import gathered, summed

STATE = "state.pt"


@dataclass(frozen=True)
class Job:
    """What a rank trains.

    Args:
        source: the data; its schedule has all epochs, its `step` is 0.
        build: makes the network; called on every rank, the same weights each time. Its forward takes a batch and returns an
            `Outcome` for each objective.
        shares: weight of each objective's loss in the sum.
        optimizer: the recipe's optimizer section.
        log_steps: steps between log lines.
        checkpoint_steps: steps between checkpoints.
        board: where rank 0 writes its log.
    """

    source: Source
    build: Callable[[], nn.Module]
    shares: dict[str, float]
    optimizer: Optimizer
    log_steps: int
    checkpoint_steps: int
    board: Any


def train(job: Job) -> nn.Module | None:
    """Train to the end of the schedule, from the last checkpoint if there is one; to be called inside a Ray Train worker.

    The last report's checkpoint holds `model`, `history`, `quarantine` and `stages`.

    Returns:
        The trained network, or None if the run stopped because too many samples were bad, or the loss was no number.
    """
    try:
        return _Run(job).run()
    except (BudgetExceeded, Diverged) as error:  # every rank sees the same sums, so every rank comes here at the same step
        import ray

        ray.get(job.board.refuse.remote(error))
        return None


class Diverged(RunError):
    """The loss is no number any more; training on would be for nothing, and so would a restart."""


class _Run:
    def __init__(self, job: Job) -> None:
        import ray.train
        import ray.train.torch

        self._job, self._context = job, ray.train.get_context()
        self._rank, self._world = self._context.get_world_rank(), self._context.get_world_size()
        recipe = job.source.recipe
        self._device = ray.train.torch.get_device()
        if self._device.type == "cpu":
            torch.set_num_threads(recipe.training.threads or max(1, round(recipe.training.cpus)))
        self._model = place(job.build(), self._device)
        self._parallel = ray.train.torch.prepare_model(self._model) if self._world > 1 else self._model
        self._optimizer, self._scheduler = build_optimizer(job.optimizer, self._model, job.source.schedule.steps)
        self._quarantine = Quarantine(recipe.failures.budget, job.source.corpus.samples)
        self._history: list[dict[str, Any]] = []
        self._step = self._restore()

    def run(self) -> nn.Module:
        job, schedule = self._job, self._job.source.schedule
        feed = Feed(replace(job.source, step=self._step), self._rank, self._world)
        self._parallel.train()
        tally = _Tally(list(job.shares), self._device)
        started = logged = time.perf_counter()
        for step, columns in feed:
            tally.failures += [text for text in columns["failure"] if text]
            self._advance(columns, tally)
            self._step = step + 1
            last = self._step == schedule.steps
            if self._step % job.log_steps == 0 or last:
                now = time.perf_counter()
                self._log(tally, now - logged, feed)
                tally, logged = _Tally(list(job.shares), self._device), now
            if last or self._step % job.checkpoint_steps == 0:
                self._checkpoint(feed, time.perf_counter() - started)
        return self._model

    def _advance(self, columns: dict[str, Any], tally: _Tally) -> None:
        batch = to_device(columns, self._device)
        with autocast(self._device, self._job.source.recipe.training.precision):
            outcomes = self._parallel(batch)
        # Divided by the rows, good or bad, so that the mean over ranks does not depend on which rank a bad sample fell to.
        rows = len(batch["weight"])
        losses = {name: outcome.loss.sum() / rows for name, outcome in outcomes.items()}
        loss = sum(self._job.shares[name] * value for name, value in losses.items())
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self._scheduler.step()
        tally.add(losses, outcomes, rows)

    def _log(self, tally: _Tally, seconds: float, feed: Feed) -> None:
        totals = summed(tally.values, self._world)
        self._quarantine.add(int(totals[0].item()), gathered(tally.failures, self._world))
        if not totals.isfinite().all():
            raise Diverged(
                f"the loss is no finite number between steps {self._step - tally.steps} and {self._step}: lower the learning rate"
                " (training.optimizer.lr), or set training.precision to float32"
            )
        steps = tally.steps
        record = {
            "step": self._step,
            "steps": self._job.source.schedule.steps,
            "epoch": self._step / self._job.source.schedule.steps_per_epoch,
            "lr": self._scheduler.get_last_lr()[0],
            "samples_per_second": totals[0].item() / seconds,
            "wait_share": feed.since_last("wait") / seconds,
            "quarantined": len(self._quarantine),
            "tasks": {
                name: {
                    "loss": loss / steps / self._world,
                    "metric": metric / max(count, 1),
                    "trivial": trivial / max(count, 1),
                }
                for name, (loss, metric, trivial, count) in zip(self._job.shares, totals[1:].reshape(-1, 4).tolist())
            },
        }
        self._history.append(record)
        if self._rank == 0:
            self._job.board.log.remote(record)

    def _checkpoint(self, feed: Feed, seconds: float) -> None:
        import ray.train

        stages = {name: value / self._world for name, value in feed.seconds.items()}
        metrics = {"step": self._step}
        if self._rank > 0:
            ray.train.report(metrics)
            return
        state = {
            "step": self._step,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "random": torch.get_rng_state(),
            "history": self._history,
            "quarantine": self._quarantine.rows(),
            "stages": {**stages, "total": seconds, "first_batch": feed.first_batch, "samples": feed.samples},
        }
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, Path(folder) / STATE)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def _restore(self) -> int:
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return 0
        state = load_state(checkpoint, self._device)
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["random"].cpu())
        self._history = state["history"]
        self._quarantine.restore(state["quarantine"], state["step"] * self._job.source.schedule.geometry.batch)
        return int(state["step"])


class _Tally:
    """Sums between two log lines: samples, then loss, metric, trivial and count a task; on the device, so that no step waits."""

    def __init__(self, names: list[str], device: torch.device) -> None:
        self.values = torch.zeros(1 + 4 * len(names), dtype=torch.float64, device=device)
        self.steps = 0
        self.failures: list[str] = []

    def add(self, losses: dict[str, torch.Tensor], outcomes: dict[str, Any], rows: int) -> None:
        parts = [torch.tensor(float(rows), device=self.values.device)]
        for name, outcome in outcomes.items():
            parts += [losses[name].detach(), outcome.metric, outcome.trivial, outcome.count]
        self.values += torch.stack([part.to(torch.float64) for part in parts])
        self.steps += 1


def load_state(checkpoint: Any, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state that `train` saved, from a Ray Train checkpoint; tensors and plain data only."""
    with checkpoint.as_directory() as folder:
        state: dict[str, Any] = torch.load(Path(folder) / STATE, map_location=device, weights_only=True)
    return state


def summary(state: dict[str, Any]) -> dict[str, Any]:
    """What a finished run's last checkpoint says, for reports."""
    history, stages = state["history"], state["stages"]
    names = history[-1]["tasks"] if history else {}
    return {
        "tasks": {
            name: {
                "step": [line["step"] for line in history],
                "loss": [line["tasks"][name]["loss"] for line in history],
                "metric": history[-1]["tasks"][name]["metric"],
                "metrics": [line["tasks"][name]["metric"] for line in history],
                "trivial": history[-1]["tasks"][name]["trivial"],
            }
            for name in names
        },
        "samples_per_second": stages["samples"] / stages["total"] if stages["total"] else 0.0,
        "quarantined": len(state["quarantine"]),
        "steps": state["step"],
        "seconds": stages["total"],
        "stages": stages,
    }
