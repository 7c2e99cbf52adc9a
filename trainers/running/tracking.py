"""Trackers of a run's log: a JSON-lines file, Ray's metrics, TensorBoard, MLflow, W&B; only the command writes to them."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from pipeline.errors import UserError, installing
from pipeline.recipe.schema import Recipe
from pipeline.recipe.training import Training
from pipeline.storage import exists, is_local, join, open_seekable, scrubbed, scrubbed_document, write_atomic
from pipeline.streaming.metrics import Gauges
from trainers.running.run_log import Record, TolerantListener
from trainers.running.runs import RunFolder

_MLFLOW_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""Defaults for variables that the environment does not set: MLflow's own let it retry for minutes, while other trackers wait."""

_WANDB_SECONDS = 30.0
"""How long a W&B run may take to start."""

log = logging.getLogger(__name__)

Take = Callable[[Record], None]


@contextmanager
def tracked(recipe: Recipe, stage: str) -> Iterator[Take]:
    """Open the recipe's trackers; yields a function that passes a log line to all of them.

    A tracker that fails misses lines, see `trainers.running.run_log.TolerantListener`; the run and other trackers go on.

    Raises:
        UserError: MLflow or W&B is asked for and is not installed, or cannot be reached.
    """
    folder = RunFolder(recipe)
    gauges = Gauges(recipe.name, stage, recipe.failures.budget)
    run = f"{stage}-{folder.identity(stage)}"
    with ExitStack() as stack:
        url = folder.path(f"{stage}.jsonl")
        opened = [
            _lines(url, run) if is_local(url) else _object(url, run, recipe.training),
            _always("Ray's metrics", lambda record: gauges.training(record, recipe.training.batch)),
        ]
        if recipe.tracking.tensorboard and is_local(folder.url):
            opened.append(_tensorboard(join(folder.path("tensorboard"), run)))
        if recipe.tracking.mlflow:
            opened.append(_mlflow(recipe, recipe.tracking.mlflow, stage))
        if recipe.tracking.wandb:
            opened.append(_wandb(recipe, recipe.tracking.wandb, stage, run))
        takers = [stack.enter_context(_tolerant(tracker)) for tracker in opened]

        def take(record: Record) -> None:
            for taker in takers:
                taker(record)

        yield take


@contextmanager
def _tolerant(tracker: AbstractContextManager[tuple[str, Take]]) -> Iterator[TolerantListener]:
    """Open a tracker whose failures are tolerated, also when it closes; errors while it opens are raised."""
    with ExitStack() as stack:
        name, take = stack.enter_context(tracker)
        tolerant, closing = TolerantListener(name, take), stack.pop_all()
    try:
        yield tolerant
    finally:
        tolerant.close()
        try:
            closing.__exit__(*sys.exc_info())
        except Exception as error:  # noqa: BLE001 - whatever its library raises
            log.warning("%s could not be closed: %s", name, scrubbed(str(error)))


def flat(record: Record) -> dict[str, float]:
    """A log line as scalars by name: `rotation/loss` and so on."""
    scalars = {name: float(record[name]) for name in ("lr", "samples_per_second", "wait_share", "quarantined")}
    for part, values in {**record["tasks"], "clusters": record.get("clusters", {})}.items():
        scalars |= {f"{part}/{name}": float(value) for name, value in values.items()}
    return scalars


@contextmanager
def _always(name: str, take: Take) -> Iterator[tuple[str, Take]]:
    yield name, take


@contextmanager
def _lines(url: str, run: str) -> Iterator[tuple[str, Take]]:
    """Write `<stage>.jsonl` on a local disk, a line a record, each with `run` and `time`; earlier lines of the same run stay."""
    with ExitStack() as stack:
        file: IO[bytes] | None = None

        def take(record: Record) -> None:
            nonlocal file
            if file is None:
                with write_atomic(url) as whole:
                    whole.writelines(_before(url, run, record["step"]))
                file = stack.enter_context(Path(url).open("ab", buffering=0))
            end, line = file.seek(0, os.SEEK_END), _line(run, record)
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), url)
            except OSError:
                file.truncate(end)  # no half lines
                raise

        yield url, take


@contextmanager
def _object(url: str, run: str, spec: Training) -> Iterator[tuple[str, Take]]:
    """Write `<stage>.jsonl` as an object, which cannot be appended to: as a whole before each checkpoint and at the end."""
    with tempfile.TemporaryFile() as file:
        begun, written = False, 0  # checkpoints whose lines are in the object

        def upload() -> None:
            file.seek(0)
            with write_atomic(url) as remote:
                shutil.copyfileobj(file, remote)

        def take(record: Record) -> None:
            nonlocal begun, written
            if not begun:
                file.truncate(0)
                file.writelines(_before(url, run, record["step"]))
                begun = True
            file.seek(0, os.SEEK_END)
            file.write(_line(run, record))
            every = max(1, round(spec.checkpoint_epochs * record["step"] / record["epoch"]))
            checkpoints = (record["step"] + spec.log_steps - 1) // every  # before the next line
            if checkpoints > written:
                written = checkpoints
                try:
                    upload()
                except OSError as error:
                    log.warning("%s cannot be written now, the next checkpoint tries again: %s", url, scrubbed(str(error)))

        try:
            yield url, take
        finally:
            if begun:
                upload()


def _before(url: str, run: str, step: int) -> Iterator[bytes]:
    """The lines of one run in a log that come before a step; later ones will be written again."""
    if not exists(url):
        return
    with open_seekable(url) as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # its writer was killed while writing it
            if record.get("run") == run and record["step"] < step:
                yield line


def _line(run: str, record: Record) -> bytes:
    return f"{json.dumps({'run': run, 'time': round(time.time(), 3), **record})}\n".encode()


@contextmanager
def _tensorboard(folder: str) -> Iterator[tuple[str, Take]]:
    """Write to a TensorBoard folder of the run; steps of an earlier start that are written again are hidden."""
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = None

    def take(record: Record) -> None:
        nonlocal writer
        writer = writer or SummaryWriter(folder, purge_step=record["step"])
        for name, value in flat(record).items():
            writer.add_scalar(name, value, record["step"])

    try:
        yield "TensorBoard", take
    finally:
        if writer is not None:
            writer.close()


@contextmanager
def _mlflow(recipe: Recipe, uri: str, stage: str) -> Iterator[tuple[str, Take]]:
    try:
        import mlflow
    except ImportError:
        raise UserError(f"tracking.mlflow is set, and MLflow is not installed: {installing('mlflow')}") from None
    for name, value in _MLFLOW_PATIENCE.items():
        os.environ.setdefault(name, value)
    with ExitStack() as stack:
        try:
            mlflow.set_tracking_uri(uri)
            mlflow.set_experiment(recipe.name)
            stack.enter_context(mlflow.start_run(run_name=stage))
            mlflow.log_params(_parameters(scrubbed_document(recipe.model_dump(mode="json"))))
        except Exception as error:  # of its own, and those of its storage
            raise UserError(f"tracking.mlflow: cannot start a run at {scrubbed(uri)}: {_shortly(error)}") from error

        def take(record: Record) -> None:
            scalars = {name.replace("/", "."): value for name, value in flat(record).items()}
            mlflow.log_metrics(scalars, step=record["step"])

        yield f"MLflow at {scrubbed(uri)}", take


@contextmanager
def _wandb(recipe: Recipe, project: str, stage: str, group: str) -> Iterator[tuple[str, Take]]:
    """Log to a new W&B run; those of one recipe and stage, as after a restart, are a group."""
    try:
        import wandb
    except ImportError:
        raise UserError(f"tracking.wandb is set, and W&B is not installed: {installing('wandb')}") from None
    entity, _, name = project.rpartition("/")
    url = RunFolder(recipe).url
    with ExitStack() as stack:
        try:
            started = wandb.init(
                entity=entity or None,
                project=name,
                name=f"{recipe.name} {stage}",
                group=group,
                job_type=stage,
                config=scrubbed_document(recipe.model_dump(mode="json")),
                dir=url if is_local(url) else None,
                settings=wandb.Settings(console="off", silent=True, disable_git=True, init_timeout=_WANDB_SECONDS),
            )
            stack.enter_context(started)
            started.define_metric("*", step_metric="step")
        except Exception as error:  # of its own, and those of its connection
            raise UserError(
                f"tracking.wandb: cannot start a run in {project}: {_shortly(error)}; WANDB_MODE=offline needs no account"
            ) from error
        yield f"W&B in {project}", lambda record: started.log({"step": record["step"], **flat(record)})


def _shortly(error: Exception) -> str:
    return scrubbed(" ".join(str(error).split())[:300])


def _parameters(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, dict):
            found |= _parameters(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
