"""Where the log of a run goes: a JSON-lines file, Ray's metrics, TensorBoard, MLflow; written by the command alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.metrics import Gauges
from pipeline.recipe.schema import Recipe
from pipeline.storage import is_local, join, scrubbed_document, write_atomic
from trainers.board import Record
from trainers.runs import RunFolder


@contextmanager
def tracked(recipe: Recipe, stage: str) -> Iterator[Callable[[Record], None]]:
    """Open the recipe's trackers; what is yielded takes log lines.

    Raises:
        UserError: MLflow is asked for and not installed.
    """
    folder = RunFolder(recipe)
    with ExitStack() as stack:
        gauges = Gauges(recipe.name, stage, recipe.failures.budget)
        takers = [stack.enter_context(_lines(folder, stage)), lambda record: gauges.training(record, recipe.training.batch)]
        if recipe.tracking.tensorboard and is_local(folder.url):
            takers.append(stack.enter_context(_tensorboard(folder, stage)))
        if recipe.tracking.mlflow:
            takers.append(stack.enter_context(_mlflow(recipe, recipe.tracking.mlflow, stage)))

        def take(record: Record) -> None:
            for taker in takers:
                taker(record)

        yield take


def flat(record: Record) -> dict[str, float]:
    """A log line as scalars by name: `rotation/loss` and so on."""
    scalars = {name: float(record[name]) for name in ("lr", "samples_per_second", "wait_share", "quarantined")}
    for task, values in record["tasks"].items():
        scalars |= {f"{task}/{name}": float(value) for name, value in values.items()}
    return scalars


@contextmanager
def _lines(folder: RunFolder, stage: str) -> Iterator[Callable[[Record], None]]:
    """`<stage>.jsonl`; on a local disk line by line, elsewhere whole at the end, since object stores cannot append."""
    url = folder.path(f"{stage}.jsonl")
    if is_local(url):
        Path(url).parent.mkdir(parents=True, exist_ok=True)
        with Path(url).open("w") as file:
            yield lambda record: print(json.dumps(record), file=file, flush=True)
        return
    lines: list[str] = []
    try:
        yield lambda record: lines.append(json.dumps(record))
    finally:
        with write_atomic(url) as remote:
            remote.write("".join(f"{line}\n" for line in lines).encode())


@contextmanager
def _tensorboard(folder: RunFolder, stage: str) -> Iterator[Callable[[Record], None]]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(join(folder.path("tensorboard"), stage)) as writer:

        def take(record: Record) -> None:
            for name, value in flat(record).items():
                writer.add_scalar(name, value, record["step"])

        yield take


@contextmanager
def _mlflow(recipe: Recipe, uri: str, stage: str) -> Iterator[Callable[[Record], None]]:
    try:
        import mlflow
    except ImportError:
        raise UserError("tracking.mlflow is set, and MLflow is not installed: pip install 'pseudolabel[mlflow]'") from None
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(recipe.name)
    with mlflow.start_run(run_name=stage):
        mlflow.log_params(_parameters(scrubbed_document(recipe.model_dump(mode="json"))))

        def take(record: Record) -> None:
            scalars = {name.replace("/", "."): value for name, value in flat(record).items()}
            mlflow.log_metrics(scalars, step=record["step"])

        yield take


def _parameters(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            found |= _parameters(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
