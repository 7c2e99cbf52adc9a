"""A run's curves stay small however long it is, and show when a task has learnt nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.learning.history import MOST_POINTS, MOST_RECENT, History, learnt
from trainers.learning.loop import is_logged


def line(step: int, loss: float = 1.0, metric: float = 0.5, count: float = 64.0, trivial: float = 0.25) -> dict[str, Any]:
    values = {"loss": loss, "metric": metric, "trivial": trivial, "ssim": loss / 2}
    return {"step": step, "tasks": {"rotation": values}, "counts": {"rotation": count}}


def test_a_long_run_has_a_short_even_curve_of_the_means_over_all_its_samples() -> None:
    history, drawn, total, samples = History(), random.Random(0), 0.0, 0.0
    for step in range(1, 12_346):
        loss, count = drawn.random(), drawn.randrange(5)
        history.add(line(step, loss, count=count))
        total, samples = total + loss * count, samples + count
        if step % 1000 == 0:  # a checkpoint, and a resumed run
            history = History(history.state())
        assert len(history.state()["points"]) <= MOST_POINTS
        assert len(history.state()["recent"]) <= MOST_RECENT
    task, points = history.tasks()["rotation"], history.state()["points"]
    assert len(task["step"]) == len(task["loss"]) == len(task["metrics"]) > MOST_POINTS // 2
    assert {after - before for before, after in zip(task["step"], task["step"][1:-1])} == {16}
    assert task["step"][-1] == 12_345
    mean = sum(point["tasks"]["rotation"]["loss"] * point["counts"]["rotation"] for point in points) / samples
    assert mean == pytest.approx(total / samples)
    assert task["also"] == {"ssim": loss / 2}


def test_a_short_run_has_all_its_lines_as_they_are_also_from_a_checkpoint_that_held_a_list_of_them() -> None:
    lines = [line(step, 1 / step, metric=step / 10) for step in range(1, 9)]
    history = History()
    for one in lines:
        history.add(one)
    task = history.tasks()["rotation"]
    assert (task["step"], task["metrics"]) == (list(range(1, 9)), [step / 10 for step in range(1, 9)])
    assert (task["metric"], task["trivial"]) == (0.8, 0.25)
    bare = [{"step": one["step"], "tasks": one["tasks"]} for one in lines]
    assert History(bare).tasks() == History(history.state()).tasks() == history.tasks()


@pytest.mark.parametrize(
    ("metric", "higher", "said"),
    [
        (lambda noise: 0.25 + noise, True, False),  # at the trivial answer, as noise has it
        (lambda noise: 0.20 + noise, True, False),  # surely worse
        (lambda noise: 0.31 + noise, True, True),
        (lambda noise: 0.20 + noise, False, True),  # degrees: fewer are better
        (lambda noise: 0.31 + noise, False, False),
        (lambda noise: 0.25, True, False),  # the trivial answer itself
    ],
)
def test_a_task_has_learnt_where_its_metric_beats_the_trivial_answer_by_more_than_noise(
    metric: Callable[[float], float], higher: bool, said: bool
) -> None:
    drawn, history = random.Random(1), History()
    for step in range(10, 1010, 10):
        history.add(line(step, metric=metric(drawn.gauss(0, 0.03))))
    task = history.tasks()["rotation"]
    assert task["margin_error"] < 0.015
    assert learnt(task, higher, 1000) is said


def test_the_start_of_a_run_is_not_held_against_it_and_what_stands_still_for_the_last_quarter_is() -> None:
    late, history = History(), History()
    for step in range(1, 101):
        late.add(line(step, metric=0.25 if step < 70 else 0.5 + step % 2 / 100))
        history.add(line(step, metric=0.5 if step < 70 else 0.25 + step % 2 / 100 - 0.005))
    assert learnt(late.tasks()["rotation"], True, 1000) is True
    assert learnt(history.tasks()["rotation"], True, 1000) is False


@pytest.mark.parametrize(("lines", "steps"), [(4, 1000), (50, 99), (0, 0)])
def test_a_run_of_few_steps_or_few_lines_is_too_short_to_tell(lines: int, steps: int) -> None:
    history = History()
    for step in range(1, lines + 1):
        history.add(line(step, metric=0.9))
    for task in history.tasks().values():
        assert learnt(task, True, steps) is None


@given(steps=st.integers(1, 500), every=st.integers(1, 60))
def test_log_lines_come_at_even_distance_and_the_last_is_of_no_few_steps(steps: int, every: int) -> None:
    logged = [step for step in range(1, steps + 1) if is_logged(step, steps, every)]
    spans = [after - before for before, after in zip([0, *logged], logged)]
    assert logged[-1] == steps
    assert set(spans[:-1]) <= {every}
    assert every / 2 <= spans[-1] < 1.5 * every or len(spans) == 1


def test_the_trivial_answers_metric_is_a_curve_of_its_own() -> None:
    """It depends on the photos of a line, as that of hidden regions does: the last one is not that of the lines before."""
    history = History()
    for step in range(1, 5):
        history.add({"step": step, "tasks": {"occlusion": {"loss": 1.0, "metric": 20.0 + step, "trivial": 20.0 - step}}})
    found = history.tasks()["occlusion"]
    assert found["trivials"] == [19.0, 18.0, 17.0, 16.0]
    assert (found["trivial"], found["step"]) == (16.0, [1, 2, 3, 4])
