"""Jigsaw: patches of one photo with gaps between them, shuffled by one of several permutations that differ widely."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.draws import Draws
from pipeline.tasks.jigsaw import Jigsaw, distant_permutations
from tests.pipeline.made_images import engine, good, request

COUNT = 200


def hamming(orders: np.ndarray) -> np.ndarray:
    """The number of places in which each pair of rows differs; for a row and itself, the number of places."""
    differ = (orders[:, None] != orders[None]).sum(axis=2)
    np.fill_diagonal(differ, orders.shape[1])
    return differ


@pytest.mark.parametrize(
    ("items", "count", "least"), [(4, 24, 2), (4, 2, 4), (9, 9, 8), (9, 100, 6), (9, 1000, 5), (16, 100, 13), (36, 100, 33)]
)
def test_orders_are_distinct_and_far_apart(items: int, count: int, least: int) -> None:
    orders = distant_permutations(items, count)
    assert orders.shape == (count, items)
    assert orders.dtype == np.int64
    assert (np.sort(orders, axis=1) == np.arange(items)).all()
    assert len(np.unique(orders, axis=0)) == count
    assert hamming(orders).min() >= least


def test_orders_are_further_apart_than_random_ones() -> None:
    random = np.stack([np.random.default_rng(i).permutation(9) for i in range(100)])
    assert hamming(distant_permutations(9, 100)).min() >= hamming(random).min() + 3


def test_orders_are_pinned() -> None:
    """A label means an order: another set would make every jigsaw checkpoint and rendered corpus meaningless."""
    pinned = {(9, 100): "9a7feebec5b6907f", (4, 24): "9253ed5183994b88", (16, 30): "6ccad5fb240e9c1f"}
    for (items, count), expected in pinned.items():
        orders = distant_permutations(items, count)
        assert hashlib.sha256(orders.astype("<i8").tobytes()).hexdigest()[:16] == expected, (items, count)


def fitting(task: Jigsaw, size: int) -> bool:
    try:
        task.check(size)
    except ValueError:
        return False
    return True


@given(
    grid=st.integers(2, 6), gap=st.floats(0, 0.49), jitter=st.floats(0, 0.49), size=st.integers(12, 260), epoch=st.integers(0, 50)
)
def test_patches_lie_inside_keep_the_gap_and_never_overlap(grid: int, gap: float, jitter: float, size: int, epoch: int) -> None:
    task = Jigsaw(grid=grid, gap=gap, jitter=jitter, permutations=2)
    if not fitting(task, size):
        return
    cells, side = grid**2, task.input_shape(size)[1]
    corners = task.draw(Draws(3, epoch, np.arange(20, dtype=np.uint64)).stream("jigsaw"), size)["corners"]
    assert corners.shape == (20, cells, 2)
    assert corners.min() >= 0
    assert corners.max() + side <= size
    least = round(gap * (size // grid))
    for places in corners:
        # Two squares are apart by the larger of their distances along the two axes.
        apart = np.abs(places[:, None] - places[None]).max(axis=2) - side
        np.fill_diagonal(apart, size)
        assert apart.min() >= least


def test_the_place_in_a_cell_takes_every_value_it_may() -> None:
    task = Jigsaw()
    cell = 96 // 3
    corners = task.draw(Draws(0, 0, np.arange(2000, dtype=np.uint64)).stream("jigsaw"), 96)["corners"]
    gap, room = round(0.06 * cell), round(0.1 * cell)
    assert sorted(np.unique(corners % cell)) == [gap // 2 + offset for offset in range(room + 1)]


@pytest.mark.parametrize("name", ["cpu", "dali"])
def test_patch_k_shows_the_cell_that_the_order_puts_there(name: str) -> None:
    task = Jigsaw(gap=0, jitter=0, gray=0, permutations=50)
    size, side = 48, 16
    drawn = task.draw(Draws(0, 0, np.arange(30, dtype=np.uint64)).stream("jigsaw"), size)
    pixels, _ = engine(name, {"jigsaw": task}, size).run(request([good()["png"]] * 30, drawn={"jigsaw": drawn}))
    orders = distant_permutations(9, 50)[drawn["label"]]
    for i, order in enumerate(orders):
        for k, cell in enumerate(order):
            top, left = side * (cell // 3), side * (cell % 3)
            assert np.array_equal(pixels["jigsaw.input"][i, k], pixels["image"][i, top : top + side, left : left + side])


@pytest.mark.parametrize("name", ["cpu", "dali"])
def test_a_share_of_the_images_loses_its_colour(name: str) -> None:
    task = Jigsaw(gray=0.4)
    drawn = task.draw(Draws(0, 0, np.arange(COUNT, dtype=np.uint64)).stream("jigsaw"), 48)
    pixels, _ = engine(name, {"jigsaw": task}, 48).run(request([good()["png"]] * COUNT, drawn={"jigsaw": drawn}))
    grey = (np.ptp(pixels["jigsaw.input"].astype(int), axis=-1) == 0).all(axis=(1, 2, 3))
    assert np.array_equal(grey, drawn["gray"])
    assert abs(grey.mean() - 0.4) < 0.15


@pytest.mark.parametrize(
    ("parameters", "size", "words"),
    [
        ({"grid": 6}, 24, "6x6 jigsaw on 24 pixels .* at least 6"),
        ({"grid": 5}, 32, "take a smaller grid or larger images"),
        ({"grid": 3, "gap": 0.45, "jitter": 0.45}, 96, "patches of"),
        ({"grid": 2, "permutations": 25}, 96, "4 patches have 24 orders, fewer than 25"),
    ],
)
def test_a_jigsaw_that_cannot_be_laid_is_refused(parameters: dict[str, float], size: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Jigsaw(**parameters).check(size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "parameters", [{"grid": 9}, {"grid": 1}, {"permutations": 1}, {"gap": 0.5}, {"gray": 1.1}, {"jitter": -0.1}]
)
def test_parameters_out_of_range_are_refused(parameters: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Jigsaw(**parameters)  # type: ignore[arg-type]


def test_all_orders_of_four_patches_can_be_used() -> None:
    Jigsaw(grid=2, permutations=24).check(48)
    assert len(distant_permutations(4, 24)) == math.factorial(4)
