"""Runs a function on Ray Train workers as the recipe says, and turns what can go wrong into words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.errors import RunError, UserError
from pipeline.recipe.schema import Recipe
from trainers.board import Record, watched
from trainers.runs import RunFolder


def fit(
    worker: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    recipe: Recipe,
    stage: str,
    board: Any,
    listeners: list[Callable[[Record], None]],
    fresh: bool = False,
) -> Any:
    """Run `worker(config)` on `training.workers` workers; lost ones are replaced and go on from the last checkpoint.

    A run of the same recipe and stage that did not finish is taken up where its last checkpoint is.

    Args:
        worker: the function; it may report checkpoints.
        config: its argument.
        recipe: resources, restarts, storage.
        stage: `pretrain` or the like; names the checkpoints.
        board: see `trainers.board`.
        listeners: called with each log line.
        fresh: forget an earlier run's checkpoints.

    Returns:
        Ray Train's result.

    Raises:
        BudgetExceeded: too many samples could not be decoded.
        RunError: the loss was no number any more, or workers failed more often than `failures.restarts` allows.
    """
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    folder, spec = RunFolder(recipe), recipe.training
    name = f"{stage}-{folder.identity(stage)}"
    if fresh:
        folder.clear(name)
    resources = {"CPU": spec.cpus, **({"GPU": spec.gpus} if spec.gpus else {})}
    trainer = TorchTrainer(
        worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=spec.workers, use_gpu=spec.gpus > 0, resources_per_worker=resources),
        run_config=RunConfig(
            name=name,
            storage_path=folder.url,
            failure_config=FailureConfig(max_failures=recipe.failures.restarts),
            checkpoint_config=CheckpointConfig(num_to_keep=spec.keep),
        ),
    )
    with watched(board, listeners):
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _in_words(error, stage) from error
    refusal = ray.get(board.refusal.remote())
    if refusal is not None:
        raise refusal
    return result


def _in_words(error: BaseException, stage: str) -> Exception:
    """The first cause that speaks to the user, if any of the workers died of one."""
    causes = [*getattr(error, "worker_failures", {}).values(), error]
    for cause in causes:
        while cause is not None:
            if isinstance(cause, UserError | RunError):
                return cause
            cause = getattr(cause, "cause", None) or cause.__cause__
    return RunError(f"{stage} failed, more often than failures.restarts allows: {causes[0]}")
