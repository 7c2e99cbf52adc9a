"""Occlusion: a box is painted over, and the mask says exactly where."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.draws import Draws
from pipeline.tasks.occlusion import Occlusion
from tests.pipeline.made_images import engine, good, request

COUNT = 4000


@given(
    size=st.integers(8, 230),
    area=st.tuples(st.floats(0.01, 0.9), st.floats(0.01, 0.9)).map(sorted),
    ratio=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(sorted),
    epoch=st.integers(0, 99),
)
def test_boxes_lie_inside_have_the_drawn_area_and_are_the_mask(
    size: int, area: list[float], ratio: list[float], epoch: int
) -> None:
    task = Occlusion(area=tuple(area), ratio=tuple(ratio))
    try:
        task.check(size)
    except ValueError:
        return
    drawn = task.draw(Draws(0, epoch, np.arange(30, dtype=np.uint64)).stream("occlusion"), size)
    assert drawn["boxes"].shape == (30, 1, 4)
    top, left, height, width = drawn["boxes"][:, 0].T
    assert min(top.min(), left.min()) >= 0
    assert min(height.min(), width.min()) >= 1
    assert (top + height).max() <= size
    assert (left + width).max() <= size
    # Sides are rounded to whole pixels: by half a pixel each.
    slack = 0.5 * (height + width) + 1
    assert (height * width >= area[0] * size**2 - slack).all()
    assert (height * width <= area[1] * size**2 + slack).all()
    for (t, x, h, w), mask in zip(drawn["boxes"][:, 0], drawn["mask"]):
        expected = np.zeros((size, size), np.uint8)
        expected[t : t + h, x : x + w] = 1
        assert np.array_equal(mask, expected)


@pytest.mark.parametrize("name", ["cpu", "dali"])
def test_the_box_is_painted_and_nothing_else_is(name: str) -> None:
    task = Occlusion(fill=(1, 2, 3))
    drawn = task.draw(Draws(0, 0, np.arange(40, dtype=np.uint64)).stream("occlusion"), 48)
    pixels, _ = engine(name, {"occlusion": task}, 48).run(request([good()["png"]] * 40, drawn={"occlusion": drawn}))
    hidden = drawn["mask"].astype(bool)
    assert (pixels["occlusion.input"][hidden] == [1, 2, 3]).all()
    assert np.array_equal(pixels["occlusion.input"][~hidden], pixels["image"][~hidden])


def test_every_place_is_hidden_now_and_then() -> None:
    drawn = Occlusion().draw(Draws(0, 0, np.arange(COUNT, dtype=np.uint64)).stream("occlusion"), 32)
    assert drawn["mask"].any(axis=0).all()
    assert not drawn["mask"].all(axis=0).any()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"area": (0.5, 1.0)}, "must leave something to see"),
        ({"area": (0.3, 0.2)}, "least <= greatest"),
        ({"area": (0, 0.2)}, "0 < least"),
        ({"ratio": (2.0, 0.5)}, "least <= greatest"),
        ({"ratio": (0.0, 1.0)}, "0 < least"),
        ({"fill": (0, 0, 256)}, "between 0 and 255"),
        ({"fill": (0, -1, 0)}, "between 0 and 255"),
        ({"area": (float("nan"), 0.2)}, "finite"),
    ],
)
def test_impossible_boxes_are_refused(parameters: dict[str, tuple[float, ...]], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Occlusion(**parameters)  # type: ignore[arg-type]


def test_a_box_that_can_be_larger_than_the_image_or_smaller_than_a_few_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.34 of the image's side"):
        Occlusion(area=(0.1, 0.9)).check(64)
    with pytest.raises(ValueError, match="less than 4 pixels"):
        Occlusion(area=(0.01, 0.1)).check(16)
