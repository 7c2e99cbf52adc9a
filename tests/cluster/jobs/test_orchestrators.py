"""The examples for orchestrators do what the docs say: Dagster's in process, Airflow's with stand-ins for its decorators."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.test_docs import ROOT, _fenced

PAGE = ROOT / "docs" / "orchestrators.md"


def example(word: str) -> str:
    (text,) = (block for block in _fenced(PAGE, "python") if word in block)
    return text


@pytest.fixture
def places(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment that the examples read; the command is this interpreter's."""
    for name, value in {
        "PHOTOS": photos,
        "SHARDS": tmp_path / "shards",
        "RECIPE": tmp_path / "recipe.yaml",
        "PAIRS": tmp_path / "pairs",
    }.items():
        monkeypatch.setenv(name, str(value))
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "pseudolabel").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pseudolabel "$@"\n')
    (bin / "pseudolabel").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    return tmp_path


def run_example(word: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(example(word).replace("from __future__", "#"), word, "exec", dont_inherit=True), names)  # noqa: S102
    return names


def test_dagster_materialises_the_shards_with_their_counts_and_does_not_retry_a_mistake(places: Path) -> None:
    dg = pytest.importorskip("dagster", reason="dagster is not installed")
    names = run_example("dagster")
    done = dg.materialize([names["shards"]])
    assert done.success
    (event,) = done.asset_materializations_for_node("shards")
    found = {name: entry.value for name, entry in event.metadata.items()}
    assert (found["samples"], found["shards"]) == (24, str(places / "shards"))

    (places / "recipe.yaml").write_text("nonsense: 1\n")
    failed = dg.materialize([names["pairs"]], raise_on_error=False)
    assert not failed.success
    (failure,) = [event for event in failed.all_events if event.event_type_value == "STEP_FAILURE"]
    assert "unknown key 'nonsense'" in failure.step_failure_data.user_failure_data.description
    assert not [event for event in failed.all_events if event.event_type_value == "STEP_UP_FOR_RETRY"]


def test_airflows_tasks_pass_on_urls_and_tell_a_mistake_from_a_failure(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow's decorators are replaced by stand-ins, so this proves our half of the contract only."""
    planned: list[Callable[[], Any]] = []
    tasks: dict[str, Callable[..., Any]] = {}

    class FailError(Exception):
        pass

    def task(function: Callable[..., Any]) -> Callable[..., Any]:
        tasks[function.__name__] = function
        return lambda *given: (function.__name__, given)

    def dag(**_: Any) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
        return lambda function: lambda: planned.append(function) or function()

    sdk = types.ModuleType("airflow.sdk")
    sdk.__dict__.update(dag=dag, task=task)
    exceptions = types.ModuleType("airflow.sdk.exceptions")
    exceptions.__dict__.update(AirflowFailException=FailError)
    for name, module in {
        "airflow": types.ModuleType("airflow"),
        "airflow.sdk": sdk,
        "airflow.sdk.exceptions": exceptions,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    run_example("airflow")
    assert list(tasks) == ["shards", "pairs", "backbone"]
    assert tasks["shards"]() == str(places / "shards")
    (places / "recipe.yaml").write_text("nonsense: 1\n")
    with pytest.raises(FailError, match="unknown key 'nonsense'"):
        tasks["pairs"](str(places / "shards"))
