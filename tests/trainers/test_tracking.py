"""The log of a run goes to every tracker that the recipe names, the same numbers to each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from trainers.board import Record
from trainers.runs import RunFolder
from trainers.tracking import tracked


def record(step: int, loss: float) -> Record:
    task = {"loss": loss, "metric": 0.5, "trivial": 0.25}
    return {
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


def test_the_log_is_a_line_a_record_and_tensorboard_has_the_same_numbers(run_recipe: Callable[..., Recipe]) -> None:
    spec = run_recipe()
    folder = RunFolder(spec)
    folder.make()
    with tracked(spec, "pretrain") as take:
        for line in RECORDS:
            take(line)
    assert [json.loads(line) for line in Path(folder.path("pretrain.jsonl")).read_text().splitlines()] == RECORDS
    events = EventAccumulator(folder.path("tensorboard/pretrain"))
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


def test_mlflow_that_is_not_installed_is_said_with_how_to_install_it(
    run_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "mlflow", None)
    spec = run_recipe({"tracking": {"mlflow": "file:/nowhere"}})
    RunFolder(spec).make()
    with pytest.raises(UserError, match=r"pip install 'pseudolabel\[mlflow\]'"), tracked(spec, "pretrain"):
        pass
