"""Curves show each step's own trivial answer, shares in per cent, and both starts of fine-tuning."""

from __future__ import annotations

import re

import pytest

from cluster.reports.curves import rate_curve, task_curves, tuning_curves

TASK = {"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0], "metrics": [0.1, 0.2, 0.4], "trivial": 0.1}


DASHED, SOLID = "stroke-dasharray: [0-9]", "stroke: #2f6fdf"


def heights(svg: bytes, style: str) -> list[float]:
    """The y of each point of the last line of a style."""
    (*_, path) = re.findall(rf'<path d="([^"]+)"[^>]*{style}', svg.decode())
    return [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", path)]


def test_the_trivial_answer_is_drawn_as_it_was_at_each_step() -> None:
    moving = heights(task_curves({**TASK, "trivials": [0.3, 0.2, 0.1]}, "nearest"), DASHED)
    assert moving == sorted(moving)  # the y of an SVG grows downwards
    assert len(set(moving)) == 3
    assert len(set(heights(task_curves(TASK, "nearest"), DASHED))) == 1  # of earlier versions only the last is known


@pytest.mark.parametrize(("measured", "words"), [("nearest", "nearest, %"), ("accuracy", "accuracy, %"), ("psnr", "PSNR, dB")])
def test_a_metric_is_drawn_in_its_unit(measured: str, words: str) -> None:
    assert f"<!-- {words} (dashed: trivial answer) -->" in task_curves(TASK, measured).decode()


def test_fine_tuning_from_both_starts_and_the_learning_rate_are_drawn() -> None:
    drawn = tuning_curves({"pretrained": TASK, "random": {**TASK, "loss": [4.0, 3.0, 2.0]}}).decode()
    for words in ("pretrained", "random", "accuracy on training images, %"):
        assert f"<!-- {words} -->" in drawn
    falling = heights(rate_curve([0.3, 0.2, 0.1], [0, 1, 2]), SOLID)
    assert falling == sorted(falling)
