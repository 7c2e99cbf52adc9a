"""A discriminator that is always right or always wrong is spoken of; one that plays, or rests, is not."""

from __future__ import annotations

import pytest

from trainers.learning.adversary import LINES, one_sided


def lines(real: float, made: float, n: int = LINES, count: float = 128) -> list[dict]:
    task = {"loss": 1.0, "metric": 20.0, "trivial": 19.0, "real_accuracy": real, "made_accuracy": made}
    other = {"loss": 1.0, "metric": 0.25, "trivial": 0.25}
    return [
        {"step": 10 * i, "tasks": {"rotation": other, "mine": task}, "counts": {"rotation": count, "mine": count}}
        for i in range(n)
    ]


@pytest.mark.parametrize(("real", "made"), [(0.5, 0.5), (0.7, 0.98), (1.0, 0.97), (0.02, 1.0)])
def test_one_that_is_sometimes_wrong_and_sometimes_right_is_left_alone(real: float, made: float) -> None:
    assert one_sided(lines(real, made)) is None


def test_one_that_is_always_right_is_told_with_what_to_try() -> None:
    said = one_sided(lines(0.999, 1.0))
    assert said is not None
    assert said.startswith("the discriminator of mine is right about 99.9% of photos and 100.0% of painted images: it tells")
    assert "lower tasks.mine.objective.lr" in said


@pytest.mark.parametrize(("real", "made"), [(0.0, 1.0), (1.0, 0.0), (0.001, 0.001)])
def test_one_that_takes_all_for_the_same_is_told_too(real: float, made: float) -> None:
    assert "takes all for the same" in (one_sided(lines(real, made)) or "")


def test_it_takes_several_lines_and_samples() -> None:
    assert one_sided([]) is None
    assert one_sided(lines(1, 1, n=LINES - 1)) is None
    assert one_sided(lines(1, 1, count=10)) is None
    assert one_sided([*lines(1, 1)[:-1], *lines(0.8, 1, n=1)]) is None
    assert one_sided([*lines(0.5, 0.5), *lines(1, 1)]) is not None
