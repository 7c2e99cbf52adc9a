"""The log of a run goes to every tracker that the recipe names, the same numbers to each."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from pipeline.errors import RunError, UserError
from pipeline.recipe import Recipe
from pipeline.storage import exists, read_all
from trainers.running.run_log import Record
from trainers.running.runs import RunFolder
from trainers.running.tracking import tracked


def record(step: int, loss: float = 1.0) -> Record:
    task = {"loss": loss, "metric": 0.5, "trivial": 0.25}
    return {
        "stage": "pretrain",
        "step": step,
        "steps": 2,
        "epoch": step / 2,
        "lr": 0.1,
        "samples_per_second": 100.0,
        "wait_share": 0.0,
        "quarantined": 3,
        "tasks": {"rotation": task},
    }


RECORDS = [record(1, 1.5), record(2, 0.75)]


def lines(folder: RunFolder) -> list[Record]:
    return [json.loads(line) for line in read_all(folder.path("pretrain.jsonl")).splitlines()]


def written(spec: Recipe, steps: range, loss: float = 1.0) -> None:
    with tracked(spec, "pretrain") as take:
        for step in steps:
            take(record(step, loss))


@pytest.mark.parametrize("runs", ["local", "memory://logs"])
def test_a_resumed_run_keeps_the_lines_before_it_and_writes_the_later_ones_again(
    run_recipe: Callable[..., Recipe], tmp_path: Path, runs: str
) -> None:
    storage = {"storage": {"runs": str(tmp_path) if runs == "local" else runs}, "tracking": {"tensorboard": False}}
    spec = run_recipe(storage)
    folder = RunFolder(spec)
    folder.make()
    written(spec, range(1, 8))
    if runs == "local":
        with Path(folder.path("pretrain.jsonl")).open("a") as file:
            file.write('{"run": "pretr')  # its writer was killed while writing it
    written(spec, range(5, 5))  # killed before it could write a line
    assert len(read_all(folder.path("pretrain.jsonl")).splitlines()) >= 7
    written(spec, range(5, 10), loss=2.0)
    found = [(line["step"], line["tasks"]["rotation"]["loss"]) for line in lines(folder)]
    assert found == [*((step, 1.0) for step in range(1, 5)), *((step, 2.0) for step in range(5, 10))]
    written(run_recipe(storage, batch=8), range(3, 5))  # another recipe's run leaves nothing of this one's
    assert [line["step"] for line in lines(folder)] == [3, 4]


@pytest.mark.parametrize(
    ("log_steps", "epochs", "seen"), [(1, 1, [0, 2, 2, 4, 4]), (2, 2.5, [0, 2, 2, 2, 5]), (3, 20, [0, 0, 0, 0, 0])]
)
def test_an_object_holds_the_lines_before_each_checkpoint_when_it_is_made(
    run_recipe: Callable[..., Recipe], log_steps: int, epochs: float, seen: list[int]
) -> None:
    """Two steps an epoch: checkpoints at 2 and 4 with a line each step; at 5 and 10 of lines at 2, 4, 6, 8 and 10."""
    runs = f"memory://growing-{log_steps}"
    spec = run_recipe({"storage": {"runs": runs}}, checkpoint_epochs=epochs, log_steps=log_steps)
    folder, found = RunFolder(spec), []
    with tracked(spec, "pretrain") as take:
        for step in range(log_steps, 5 * log_steps + 1, log_steps):
            take(record(step))
            found.append(len(lines(folder)) if exists(folder.path("pretrain.jsonl")) else 0)
    assert found == seen
    assert len(lines(folder)) == 5


def test_tensorboard_shows_a_run_by_itself_and_a_resumed_one_as_one_curve(
    run_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard reads a folder's files in the order of their names, which begin with the second of their start.

    Within one second it compares a counter of the process as text, "10" before "9"; real starts are seconds apart.
    """
    seconds = itertools.count(1_700_000_000)
    monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=lambda: float(next(seconds))))
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(8))
    spec, other = run_recipe(), run_recipe(batch=8)
    for recipe, steps, loss in ((spec, range(1, 8), 1.0), (other, range(1, 3), 3.0), (spec, range(5, 10), 2.0)):
        RunFolder(recipe).make()
        written(recipe, steps, loss)
    shown = {}
    for recipe in (spec, other):
        folder = RunFolder(recipe)
        events = EventAccumulator(folder.path(f"tensorboard/pretrain-{folder.identity('pretrain')}"))
        events.Reload()
        shown[recipe.training.batch] = [(event.step, event.value) for event in events.Scalars("rotation/loss")]
    assert shown[16] == [*((step, 1.0) for step in range(1, 5)), *((step, 2.0) for step in range(5, 10))]
    assert shown[8] == [(1, 3.0), (2, 3.0)]


def test_a_disk_that_is_full_for_a_moment_leaves_whole_lines(
    run_recipe: Callable[..., Recipe], caplog: pytest.LogCaptureFixture
) -> None:
    import resource

    spec = run_recipe({"tracking": {"tensorboard": False}})
    folder = RunFolder(spec)
    folder.make()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    was = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with tracked(spec, "pretrain") as take:
            for step in range(1, 6):
                if step == 3:  # there is room for half of the line
                    full = Path(folder.path("pretrain.jsonl")).stat().st_size
                    resource.setrlimit(resource.RLIMIT_FSIZE, (full + 50, before[1]))
                take(record(step))
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
    finally:
        signal.signal(signal.SIGXFSZ, was)
    assert [line["step"] for line in lines(folder)] == [1, 2, 4, 5]
    assert f"{folder.path('pretrain.jsonl')} has missed 1 of 5 log lines" in caplog.text


def test_mlflow_that_is_away_for_a_moment_misses_those_lines_and_no_other_tracker_does(
    run_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow: Any = pytest.importorskip("mlflow", reason="the `mlflow` extra is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = tmp_path / "mlruns"
    spec = run_recipe({"tracking": {"tensorboard": False, "mlflow": store.as_uri()}})
    folder = RunFolder(spec)
    folder.make()
    with tracked(spec, "pretrain") as take:
        for step in range(1, 6):
            if step == 2:
                store.rename(tmp_path / "away")
            if step == 4:
                shutil.rmtree(store, ignore_errors=True)
                (tmp_path / "away").rename(store)
            take(record(step))
    assert [line["step"] for line in lines(folder)] == [1, 2, 3, 4, 5]
    client = mlflow.MlflowClient(store.as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name(spec.name).experiment_id])
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "rotation.loss")] == [1, 4, 5]
    said = [entry.getMessage() for entry in caplog.records if "MLflow at" in entry.getMessage()]
    assert len(said) == 2
    assert "misses log lines, the run goes on without them: Exception: " in said[0]
    assert said[1].endswith("has missed 2 of 5 log lines")


def test_a_tracker_that_cannot_be_closed_is_no_failed_run_and_a_failed_run_stays_one(
    run_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mlflow", reason="the `mlflow` extra is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for error in (None, RunError("the run failed")):
        store = tmp_path / f"mlruns-{error}"
        spec = run_recipe({"tracking": {"tensorboard": False, "mlflow": store.as_uri()}})
        RunFolder(spec).make()
        with pytest.raises(RunError, match="the run failed") if error else nullcontext(), tracked(spec, "pretrain") as take:
            take(record(1))
            shutil.rmtree(store)
            if error:
                raise error
    assert caplog.text.count("could not be closed") == 2


def test_mlflow_that_cannot_be_reached_is_refused_in_a_line_before_the_run(run_recipe: Callable[..., Recipe]) -> None:
    pytest.importorskip("mlflow", reason="the `mlflow` extra is not installed")
    spec = run_recipe({"tracking": {"mlflow": "nowhere://user:secret@host/x"}})
    with (
        pytest.raises(UserError, match=r"^tracking\.mlflow: cannot start a run at nowhere://host/x: .*") as refused,
        tracked(spec, "pretrain"),
    ):
        pass
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_log_is_a_line_a_record_and_tensorboard_has_the_same_numbers(run_recipe: Callable[..., Recipe]) -> None:
    spec, before = run_recipe(), time.time() - 1e-3  # times are rounded
    folder = RunFolder(spec)
    folder.make()
    with tracked(spec, "pretrain") as take:
        for line in RECORDS:
            take(line)
    run = f"pretrain-{folder.identity('pretrain')}"
    found = lines(folder)
    assert before <= found[0].pop("time") <= found[1].pop("time") <= time.time() + 1e-3
    assert found == [{"run": run, **line} for line in RECORDS]
    events = EventAccumulator(folder.path(f"tensorboard/{run}"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("rotation/loss")] == [(1, 1.5), (2, 0.75)]
    assert [event.value for event in events.Scalars("quarantined")] == [3, 3]


def test_mlflow_gets_parameters_and_metrics_in_a_file_store(
    run_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow: Any = pytest.importorskip("mlflow", reason="the `mlflow` extra is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = (tmp_path / "mlruns").as_uri()
    spec = run_recipe({"tracking": {"tensorboard": False, "mlflow": store}})
    RunFolder(spec).make()
    with tracked(spec, "pretrain") as take:
        for line in RECORDS:
            take(line)
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name(spec.name)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["training.batch"] == "16"
    assert run.data.metrics["rotation.loss"] == 0.75
    assert [point.step for point in client.get_metric_history(run.info.run_id, "rotation.loss")] == [1, 2]


@pytest.mark.parametrize("library", ["mlflow", "wandb"])
def test_a_library_that_is_not_installed_is_said_with_how_to_install_it(
    run_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, library, None)
    spec = run_recipe({"tracking": {library: "file:/nowhere"}})
    RunFolder(spec).make()
    words = rf"`pip install --constraint constraints.txt --editable '\.\[{library}\]'"
    with pytest.raises(UserError, match=words), tracked(spec, "pretrain"):
        pass


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, without a connection."""
    found: Any = pytest.importorskip("wandb", reason="the `wandb` extra is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    found.teardown()
    return found


def wandb_records(folder: RunFolder) -> list[Any]:
    """What an offline run has written: records of protobuf, in LevelDB's format of logs with a header of 7 bytes."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record as Written

    wandb.teardown()  # its other process has written all when it ends
    (file,) = Path(folder.url).rglob("*.wandb")
    content, at, found, part = file.read_bytes(), 7, [], b""
    while at + 7 <= len(content):
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        part += content[at + 7 : at + 7 + length]
        if kind in (1, 4):  # whole, or the last part
            found.append(Written.FromString(part))
            part = b""
        at += 7 + length
    return found


def history(records: list[Any]) -> list[dict[str, float]]:
    """The logged values by name, a dict a line."""
    rows = [record.history.item for record in records if record.WhichOneof("record_type") == "history"]
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]


def test_wandb_gets_the_recipe_and_the_same_numbers_offline(run_recipe: Callable[..., Recipe], wandb: Any) -> None:
    spec = run_recipe({"tracking": {"tensorboard": False, "wandb": "photos"}})
    folder = RunFolder(spec)
    folder.make()
    with tracked(spec, "pretrain") as take:
        for line in RECORDS:
            take(line)
    records = wandb_records(folder)
    assert [(row["step"], row["rotation/loss"], row["quarantined"]) for row in history(records)] == [(1, 1.5, 3), (2, 0.75, 3)]
    (begun,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (begun.project, begun.job_type, begun.display_name) == ("photos", "pretrain", "run pretrain")
    assert begun.run_group == f"pretrain-{folder.identity('pretrain')}"
    given = {update.key: json.loads(update.value_json) for update in begun.config.update}
    assert given["training"]["batch"] == 16


def test_wandb_that_fails_misses_lines_which_are_counted_and_no_other_tracker_does(
    run_recipe: Callable[..., Recipe], wandb: Any, caplog: pytest.LogCaptureFixture
) -> None:
    spec = run_recipe({"tracking": {"tensorboard": False, "wandb": "photos"}})
    folder = RunFolder(spec)
    folder.make()
    with tracked(spec, "pretrain") as take:
        take(record(1))
        wandb.finish()  # from now on it refuses lines
        take(record(2))
        take(record(3))
    assert [line["step"] for line in lines(folder)] == [1, 2, 3]
    assert [row["step"] for row in history(wandb_records(folder))] == [1]
    assert "W&B in photos has missed 2 of 3 log lines" in caplog.text


def test_wandb_without_an_account_is_refused_in_a_line_before_the_run(
    run_recipe: Callable[..., Recipe], wandb: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()  # it reads its environment once
    spec = run_recipe({"tracking": {"tensorboard": False, "wandb": "someone/photos"}})
    RunFolder(spec).make()
    with (
        pytest.raises(UserError, match=r"^tracking\.wandb: cannot start a run in someone/photos: .*WANDB_MODE=offline needs"),
        tracked(spec, "pretrain"),
    ):
        pass
