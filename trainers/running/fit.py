"""Runs a function on Ray Train workers as the recipe says, and turns failures into errors for the user."""

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
"""The message of Ray's memory monitor, which kills workers before the operating system does."""


def fit(
    worker: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    recipe: Recipe,
    stage: str,
    run_log: Any,
    listeners: list[Callable[[Record], None]],
    fresh: bool = False,
) -> list[Event]:
    """Run `worker(config)` on `training.workers` workers; lost ones are replaced and go on from the last checkpoint.

    With 0 workers it runs in this process (Ray Train's local mode), and its errors reach the caller unchanged. An unfinished run
    of the same recipe and stage resumes from its last checkpoint.

    Args:
        worker: the function; `trainers.learning.loop.train` is the one that keeps checkpoints.
        config: its argument.
        recipe: resources, restarts, storage.
        stage: `pretrain` or the like; names the checkpoints.
        run_log: see `trainers.running.run_log`.
        listeners: called with each log line.
        fresh: remove an earlier run's checkpoints first.

    Returns:
        The run's events: workers lost, changes of their number, data actors replaced.

    Raises:
        BudgetExceeded: too many samples cannot be used.
        RunError: the loss was not finite, or workers failed more often than `failures.restarts` allows.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
    from ray.train.torch import TorchTrainer

    from trainers.running.rendezvous import NodeAddress

    class ReportLostWorkers(UserCallback):
        """Runs in Ray Train's controller."""

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            rank, error = min(worker_exceptions.items())
            words = next(iter(str(_cause(error)).strip().splitlines()), type(error).__name__)
            run_log.worker_lost.remote(f"worker {rank} was lost ({words})")

    folder, spec = RunFolder(recipe), recipe.training
    if fresh:
        folder.clear(f"{stage}-{folder.identity(stage)}")
    # Ray's annotations still describe the class of the first version of Ray Train.
    scaling: Any = ScalingConfig
    callbacks: list[Any] = [ReportLostWorkers()]
    resources = {"CPU": spec.cpus, **({"GPU": spec.gpus} if spec.gpus else {})}
    threads = None if spec.gpus else network_threads(recipe)
    trainer = TorchTrainer(
        _call,
        # By reference, so that Ray Train's controller, which passes it on, need not import torch.
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
    with watched(run_log, listeners), nullcontext() if spec.workers else _torch_state_kept():
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _error_for_user(error, stage) from error
    run_error = ray.get(run_log.error.remote())
    if run_error is not None:
        raise run_error
    events: list[Event] = ray.get(run_log.events.remote())
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
def _torch_state_kept() -> Iterator[None]:
    """Restore torch's generator and number of threads after the block: this process is the caller's."""
    import torch

    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)


def _error_for_user(error: BaseException, stage: str) -> Exception:
    """The first `UserError` or `RunError` among the causes, else a `RunError` that says what happened."""
    causes = [*getattr(error, "worker_failures", {}).values(), error]
    for cause in map(_cause, causes):
        if isinstance(cause, UserError | RunError):
            return cause
    if found := _OUT_OF_MEMORY.search(" ".join(map(str, causes))):
        return RunError(
            f"{stage} ran out of memory ({found[1]} of {found[2]} were in use): lower training.batch or image.size, or take "
            "training.backbone.stem: standard, whose maps are a sixteenth of those of the small stem"
        )
    return RunError(f"{stage} failed more often than failures.restarts allows: {causes[0]}")


def _cause(error: BaseException) -> BaseException:
    """The first `UserError` or `RunError` in an error's chain of causes, else the error itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError | RunError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    return error
