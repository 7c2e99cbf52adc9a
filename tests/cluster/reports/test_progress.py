"""Progress: rates and times that are right, few lines where there is no terminal, a bar where there is one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cluster.reports.progress import Bar, Lines, Pace, TrainingProgress, counted, named_parts, training


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_pace_knows_rate_and_time_left_from_the_second_count_on() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.at(50, 100) == (None, None)  # a resumed run begins in the middle
    clock.now += 5
    assert pace.at(60, 100) == (2.0, 20.0)
    clock.now += 5
    assert pace.at(100, 100) == (5.0, 0.0)


def test_pace_starts_anew_when_the_count_falls() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.at(0, 10)
    clock.now += 1
    pace.at(10, 10)
    clock.now += 100
    assert pace.at(2, 10) == (None, None)
    clock.now += 1
    assert pace.at(4, 10) == (2.0, 3.0)


def test_lines_come_first_last_and_once_a_minute() -> None:
    clock, written = Clock(), []
    lines = Lines(written.append, clock)
    for done in range(1, 201):
        lines.show("packing", done, 200, f"{done}")
        clock.now += 1
    assert written == ["packing: 1", "packing: 61", "packing: 121", "packing: 181", "packing: 200"]


def test_every_new_title_has_its_own_first_line() -> None:
    written: list[str] = []
    lines = Lines(written.append, Clock())
    lines.show("a", 1, 9, "")
    lines.show("b", 1, 9, "x", {"rotation": ("1.386", "25.0 %", "25.0 %")})
    assert written == ["a", "b: x; rotation loss 1.386, 25.0 %"]


def test_without_a_terminal_progress_goes_to_stderr_as_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with counted("packing [x]", "B") as tick:
        tick(1_500_000, 3_000_000)
        tick(3_000_000, 3_000_000)
    with counted("indexing", "shard"):
        pass  # nothing to do: nothing to say
    with named_parts("testing") as now:
        now("cpu")
    with training("pretrain", {}):
        pass
    out, err = capsys.readouterr()
    assert out == ""
    first, second, *rest = err.splitlines()
    assert first == "packing [x]: 1.5 MB of 3.0 MB"
    assert second.startswith("packing [x]: 3.0 MB of 3.0 MB, ")
    assert second.endswith("B/s")
    assert rest == ["testing", "testing: cpu", "pretrain: starting workers"]


def record(step: int, steps: int = 4, stage: str = "pretrain") -> dict:
    tasks = {
        "rotation": {"loss": 1.25, "metric": 0.5, "trivial": 0.25},
        "occlusion": {"loss": 0.5, "metric": 18.04, "trivial": 13.0},
    }
    return {
        "stage": stage, "step": step, "steps": steps, "epoch": 0.1, "lr": 0.1, "samples_per_second": 812.4, "wait_share": 0.031,
        "quarantined": 3, "tasks": tasks,
    }  # fmt: skip


def test_training_shows_speed_waiting_quarantine_and_each_task() -> None:
    written: list[str] = []
    clock = Clock()
    progress = TrainingProgress("pretrain", {}, Lines(written.append, clock), {"occlusion": "psnr"}, Pace(clock))
    progress.take(record(1))
    line, *tasks = written[0].split("; ")
    assert line == "pretrain: step 1 of 4, 812 img/s, waiting for data 3%, 3 quarantined"
    assert tasks == ["rotation loss 1.250, 50.0 %", "occlusion loss 0.500, 18.0 dB"]
    clock.now += 61
    progress.take({**record(2), "wait_share": 0.37, "wait_cause": "render"})
    assert "2:02 left" in written[1]
    assert "waiting for data 37% (render)" in written[1]


PHASES = {"finetune-pretrained": "from pretrained weights", "finetune-random": "from random weights"}


@pytest.mark.parametrize(
    ("steps", "second"),
    [((1, 3, 2, 3, 4), (1, 4)), ((4,), (4,)), ((), (2, 4))],
    ids=["a worker was lost after step 3", "a line each", "the first was over before"],
)
def test_training_names_the_phase_by_what_its_lines_are_of(steps: tuple[int, ...], second: tuple[int, ...]) -> None:
    written: list[str] = []
    clock = Clock()
    progress = TrainingProgress("finetune", PHASES, Lines(written.append, clock), {}, Pace(clock))
    for stage, of_stage in zip(PHASES, (steps, second)):
        for step in of_stage:
            clock.now += 61
            progress.take(record(step, stage=stage))
    titles = [line.partition(":")[0] for line in written]
    assert titles == ["finetune from pretrained weights"] * len(steps) + ["finetune from random weights"] * len(second)
    assert "left" not in written[len(steps)]  # nothing is known yet of the second's pace


def test_on_a_terminal_there_is_a_bar_with_the_tasks_below_it() -> None:
    screen = io.StringIO()
    bar = Bar(Console(file=screen, force_terminal=True, width=150), "pretrain: starting workers")
    with bar.live:
        TrainingProgress("pretrain", {}, bar, {"occlusion": "psnr"}).take(record(4))
    shown = screen.getvalue()
    assert "step 4 of 4, 812 img/s" in shown
    assert "━━━" in shown
    assert "trivial answer" in shown
    assert "18.0 dB" in shown
