"""`status RUN` and `--watch` tell from a run's folder what it is doing: step, losses, time left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.jobs.command_result import CommandResult
from cluster.jobs.run_state import run_state, states
from cluster.reports.progress import watch_job, watch_run
from tests.cluster.conftest import Call


def write(folder: Path, log: str, steps: range, began: float, of: int = 20, **more: int) -> None:
    """Log lines at two seconds a step, of a stage with so many steps."""
    tasks = {"rotation": {"loss": 0.5, "metric": 0.8, "trivial": 0.25}}
    rest = {"samples_per_second": 8.0, "wait_share": 0.0, "quarantined": 0, "tasks": tasks, "stage": log, "steps": of, **more}
    with (folder / f"{log}.jsonl").open("a") as file:
        for step in steps:
            file.write(json.dumps({"run": "x", "time": began + 2 * step, "step": step, **rest}) + "\n")


@pytest.fixture
def begun(tmp_path: Path) -> CommandResult:
    """The result of a `finetune` that has begun and written ten lines, after an earlier one that had ended."""
    result = CommandResult("finetune")
    result.begin(str(tmp_path / "finetune.result.json"))
    old = time.time() - 10_000
    for log in ("finetune-pretrained", "finetune-random"):
        write(tmp_path, log, range(1, 21), old)
    write(tmp_path, "finetune-pretrained", range(1, 11), time.time())
    with (tmp_path / "finetune-pretrained.jsonl").open("a") as file:
        file.write('{"run": "x", "ti')  # it is being written
    return result


def test_the_lines_of_this_run_tell_step_loss_and_time_left(begun: CommandResult, call: Call, tmp_path: Path) -> None:
    (tmp_path / "pretrain.result.json").write_text(
        '{"command": "pretrain", "status": "done", "started": "2020-01-01T00:00:00+00:00"}'
    )
    found = json.loads(call("status", tmp_path, "--json").stdout)
    assert (found["command"], found["status"], found["stage"]) == ("finetune", "running", "finetune-pretrained")
    assert (found["step"], found["steps"], found["losses"], found["left"]) == (10, 20, {"rotation": 0.5}, pytest.approx(20.0))
    shown = " ".join(call("status", tmp_path).stdout.split())
    assert "step 10 of 20 (finetune-pretrained) loss rotation 0.500" in shown
    assert "left 0:20" in shown


def test_watching_follows_every_line_and_ends_with_the_command(
    begun: CommandResult, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work: list[Callable[[], Any]] = [
        lambda: write(tmp_path, "finetune-pretrained", range(11, 21), time.time()),
        lambda: write(tmp_path, "finetune-random", range(1, 21), time.time()),
        lambda: begun.end(None),
    ]
    monkeypatch.setattr("cluster.jobs.run_state.time.sleep", lambda seconds: work.pop(0)())
    done = call("status", tmp_path, "--watch")
    assert (done.exit_code, work) == (0, [])
    lines = done.stderr.splitlines()
    assert lines[:2] == [
        "finetune: running",
        "finetune from pretrained weights: step 10 of 20, 8 img/s, waiting for data 0%, 0 quarantined, 0:20 left; "
        "rotation loss 0.500, 80.0 %",
    ]
    assert lines[-1].startswith("finetune from random weights: step 20 of 20")
    assert "status done" in " ".join(done.stdout.split())


def test_a_run_that_failed_says_why_and_has_no_time_left(begun: CommandResult, call: Call, tmp_path: Path) -> None:
    begun.end(ValueError("what it was"))
    state = run_state(str(tmp_path))
    assert (state.status, state.left) == ("failed", None)
    assert [one.status for one in states(str(tmp_path))] == ["failed"]
    assert "error ValueError: what it was" in " ".join(call("status", tmp_path).stdout.split())


def test_a_folder_in_which_nothing_has_begun_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no command has begun there: give the folder of a run" in refused(2, "status", tmp_path)


def test_a_job_is_watched_by_the_lines_that_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    from cluster.jobs.ray_jobs import ClusterJob

    def job(status: str) -> ClusterJob:
        return ClusterJob("photos-1", status, "pretrain", 0.0, None, None, "")

    seen = [(job("pending"), ""), (job("running"), "step 1 of 1,000, 3 img/s"), (job("done"), "step 1,000 of 1,000")]
    assert watch_job(seen).status == "done"
    said = capsys.readouterr().err.splitlines()
    assert said == ["photos-1 pending", "photos-1 running: step 1 of 1,000, 3 img/s", "photos-1 done: step 1,000 of 1,000"]


def test_nothing_is_shown_of_a_run_without_lines_but_that_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    CommandResult("evaluate").begin(str(tmp_path / "evaluate.result.json"))
    watch_run([run_state(str(tmp_path))], {})
    assert capsys.readouterr().err == "evaluate: running\n"


def test_rounds_say_which_one_it_is(call: Call, tmp_path: Path) -> None:
    CommandResult("rounds").begin(str(tmp_path / "rounds.result.json"))
    write(tmp_path, "rounds", range(1, 12), time.time(), of=40, round=2, rounds=4)
    found = json.loads(call("status", tmp_path, "--json").stdout)
    assert (found["command"], found["step"], found["steps"], found["round"], found["rounds"]) == ("rounds", 11, 40, 2, 4)
    assert "round 2 of 4 step 11 of 40 (rounds)" in " ".join(call("status", tmp_path).stdout.split())
