"""A task of views that has come to nothing ends the run in words; one that learns, or is young, does not."""

from __future__ import annotations

import pytest

from trainers.learning.collapse import LINES, collapsed


def lines(nearest: float, chance: float, std: float, first: int = 20, n: int = LINES, count: float = 640) -> list[dict]:
    task = {"loss": 1.0, "metric": nearest, "trivial": chance, "feature_std": std}
    other = {"loss": 1.0, "metric": 0.25, "trivial": 0.25}
    return [
        {"step": first + 10 * i, "tasks": {"rotation": other, "mine": task}, "counts": {"rotation": 64.0, "mine": count}}
        for i in range(n)
    ]


@pytest.mark.parametrize(
    ("nearest", "chance", "std"),
    [
        (0.02, 1 / 256, 0.6),
        (0.5, 1 / 8, 0.3),
        (0.9, 1 / 256, 0.06),  # narrow, and views are told apart
    ],
)
def test_a_task_that_tells_views_apart_is_left_alone(nearest: float, chance: float, std: float) -> None:
    assert collapsed(lines(nearest, chance, std), 100) is None


def test_views_that_are_told_apart_by_chance_alone_have_collapsed() -> None:
    said = collapsed(lines(0.004, 1 / 256, 0.9), 100)
    assert said is not None
    assert said.startswith("mine has collapsed: the other view of a photo is the nearest for 0.40%, by chance 0.39%")
    assert "copies of each other" in said
    assert "tasks.mine.scale" in said
    assert collapsed(lines(0.14, 1 / 8, 0.9), 100)  # three standard errors of 1,920 samples are 0.023
    assert collapsed(lines(0.16, 1 / 8, 0.9), 100) is None


def test_one_representation_for_all_samples_is_a_collapse() -> None:
    said = collapsed(lines(0.4, 1 / 256, 0.01), 100)
    assert said is not None
    assert "varies by 0.010 where 1 is healthy" in said
    assert "training.batch_norm: global" in said


def test_it_is_not_judged_in_the_first_tenth_by_few_lines_or_without_samples() -> None:
    assert collapsed(lines(0.004, 1 / 256, 0.9, first=10), 1000) is None
    assert collapsed(lines(0.004, 1 / 256, 0.9, n=LINES - 1), 100) is None
    assert collapsed(lines(0, 0, 0, count=0), 100) is None
    assert collapsed(lines(1 / 16, 1 / 16, 0.9, count=16), 100) is None, "48 samples say little"
    assert collapsed(lines(1 / 16, 1 / 16, 0.9, n=40, count=16), 100), "640 do"
