"""The speed benchmark notices contenders whose views are not those that were asked for."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.check import VIEWS, _wrong_views


def views(task: str, grey: float = 0.2) -> dict[str, np.ndarray]:
    """Noise in the shapes of a task's views at 32 pixels, a share of them grey."""
    rng = np.random.default_rng(0)
    made = {}
    for name, (count, side) in VIEWS[task](32).items():
        pixels = rng.integers(0, 256, (64, count, side, side, 3), dtype=np.uint8)
        without = rng.random((64, count)) < grey
        pixels[without] = pixels[without][..., :1]
        made[f"{task}.{name}"] = pixels
    return made


@pytest.mark.parametrize("task", VIEWS)
def test_views_as_asked_for_pass_in_either_layout_and_as_floats(task: str) -> None:
    batch = views(task)
    assert _wrong_views(batch, task, 32) is None
    planar = {name: np.moveaxis(pixels, -1, -3).astype(np.float32) / 255 for name, pixels in batch.items()}
    assert _wrong_views(planar, task, 32) is None


def test_too_many_grey_ones_equal_ones_and_another_size_are_wrong() -> None:
    assert "are grey" in str(_wrong_views(views("simclr", grey=0.6), "simclr", 32))
    assert "has shape" in str(_wrong_views(views("simclr"), "simclr", 64))
    equal = views("simclr")
    equal["simclr.input"][:, 1] = equal["simclr.input"][:, 0]
    assert "two views are the same" in str(_wrong_views(equal, "simclr", 32))
    dark = {name: pixels // 8 for name, pixels in views("simclr").items()}
    assert "mean" in str(_wrong_views(dark, "simclr", 32))
