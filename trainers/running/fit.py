"""Runs a function on Ray Train workers as the recipe says, and turns what can go wrong into words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from pipeline.errors import RunError, UserError
from pipeline.recipe.schema import Recipe
from pipeline.streaming.memory import keep_memory
from trainers.running.run_log import Event, Record, watched
from trainers.running.runs import RunFolder
from trainers.running.threads import network_threads

_OUT_OF_MEMORY = re.compile(r"running low on memory.*?was\s+(\S+) used / (\S+) limit", re.DOTALL)
"""In the words of Ray's memory monitor, which kills workers before the operating system does."""


def fit(
    worker: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    recipe: Recipe,
    stage: str,
    board: Any,
    listeners: list[Callable[[Record], None]],
    fresh: bool = False,
) -> list[Event]:
    """Run `worker(config)` on `training.workers` workers; lost ones are replaced and go on from the last checkpoint.

    With 0 workers it runs in this process (Ray Train's local mode), whose errors are the caller's as they are. A run of the same
    recipe and stage that did not finish is taken up where its last checkpoint is.

    Args:
        worker: the function; `trainers.learning.loop.train` is the one that keeps checkpoints.
        config: its argument.
        recipe: resources, restarts, storage.
        stage: `pretrain` or the like; names the checkpoints.
        board: see `trainers.running.run_log`.
        listeners: called with each log line.
        fresh: forget an earlier run's checkpoints.

    Returns:
        What befell the run: workers lost, other numbers of them, data actors replaced.

    Raises:
        BudgetExceeded: too many samples cannot be used.
        RunError: the loss was no number any more, or workers failed more often than `failures.restarts` allows.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
    from ray.train.torch import TorchTrainer

    from trainers.running.rendezvous import NodeAddress

    class Losses(UserCallback):
        """Runs in Ray Train's controller."""

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            rank, error = min(worker_exceptions.items())
            words = next(iter(str(_cause(error)).strip().splitlines()), type(error).__name__)
            board.lose.remote(f"worker {rank} was lost ({words})")

    folder, spec = RunFolder(recipe), recipe.training
    if fresh:
        folder.clear(f"{stage}-{folder.identity(stage)}")
    # Ray's annotations are those of the class that its second Ray Train replaced.
    scaling: Any = ScalingConfig
    callbacks: list[Any] = [Losses()]
    resources = {"CPU": spec.cpus, **({"GPU": spec.gpus} if spec.gpus else {})}
    threads = None if spec.gpus else network_threads(recipe)
    trainer = TorchTrainer(
        _call,
        # Ray Train's controller passes the call on, and need not import torch.
        train_loop_config={"call": ray.put((worker, config)), "own_process": spec.workers != 0, "threads": threads},
        torch_config=NodeAddress(),
        scaling_config=scaling(
            num_workers=spec.workers,
            use_gpu=spec.gpus > 0,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=spec.resize_seconds,
        ),
        run_config=RunConfig(
            name=f"{stage}-{folder.identity(stage)}",
            storage_path=folder.url,
            failure_config=FailureConfig(max_failures=recipe.failures.restarts),
            callbacks=callbacks,
        ),
    )
    with watched(board, listeners), nullcontext() if spec.workers else _as_it_was():
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _in_words(error, stage) from error
    refusal = ray.get(board.refusal.remote())
    if refusal is not None:
        raise refusal
    events: list[Event] = ray.get(board.events.remote())
    return events


def _call(config: dict[str, Any]) -> None:
    import ray

    if config["own_process"]:
        keep_memory()
    if config["threads"] is not None:
        import torch

        torch.set_num_threads(config["threads"])
    worker, argument = ray.get(config["call"])
    worker(argument)


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Leave torch's generator and number of threads as they were: this process is the caller's."""
    import torch

    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)


def _in_words(error: BaseException, stage: str) -> Exception:
    """The first cause that speaks to the user, if any of the workers died of one."""
    causes = [*getattr(error, "worker_failures", {}).values(), error]
    for cause in map(_cause, causes):
        if isinstance(cause, UserError | RunError):
            return cause
    if found := _OUT_OF_MEMORY.search(" ".join(map(str, causes))):
        return RunError(
            f"{stage} ran out of memory ({found[1]} of {found[2]} were in use): lower training.batch or image.size, or take "
            "training.backbone.stem: standard, whose maps are a sixteenth of those of the small stem"
        )
    return RunError(f"{stage} failed, more often than failures.restarts allows: {causes[0]}")


def _cause(error: BaseException) -> BaseException:
    """What speaks to the user among the causes of an error, or else the error itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError | RunError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return error
