"""The contract of the pixel vocabulary: every word, in both engines, against plain numpy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from skimage import data

from pipeline.engines.cpu import CpuOps
from pipeline.engines.vocabulary import Ops

COUNT = 12
FILL = (3, 250, 77)


def images(size: int) -> np.ndarray:
    """Real pixels and noise: half and half."""
    photo = data.astronaut()
    random = np.random.default_rng(0)
    crops = [photo[31 * i : 31 * i + size, 17 * i : 17 * i + size] for i in range(COUNT // 2)]
    return np.stack([*crops, *random.integers(0, 256, (COUNT - len(crops), size, size, 3), np.uint8)])


def brightness(image: np.ndarray) -> np.ndarray:
    return np.rint(image.astype(float) @ [0.299, 0.587, 0.114]).astype(np.uint8)[..., None]


def rotated(image: np.ndarray, turns: np.ndarray) -> np.ndarray:
    return np.stack([np.rot90(pixels, k) for pixels, k in zip(image, turns)])


def erased(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    out = image.copy()
    for pixels, of_image in zip(out, boxes):
        for top, left, height, width in of_image:
            pixels[top : top + height, left : left + width] = FILL
    return out


def without_colour(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.where(where[:, None, None, None].astype(bool), brightness(image), image)


def cut(image: np.ndarray, corners: np.ndarray, side: int) -> np.ndarray:
    return np.stack([[pixels[y : y + side, x : x + side] for y, x in places] for pixels, places in zip(image, corners)])


def some_boxes(size: int, count: int) -> np.ndarray:
    random = np.random.default_rng(1)
    corner = random.integers(0, size, (COUNT, count, 2))
    extent = random.integers(1, size - corner + 1)
    extent[0] = size - corner[0]  # up to the edge
    return np.concatenate([corner, extent], axis=2)


def some_corners(size: int, side: int, count: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, size - side + 1, (COUNT, count, 2))


# For each word: what is drawn, how it is said, what plain numpy makes of it, and the greatest difference allowed, in levels.
# Greys are sums of three products, which engines may round the other way; everything else moves pixels and may change none.
Case = tuple[Callable[[int], np.ndarray], Callable[..., Any], Callable[[np.ndarray, np.ndarray], np.ndarray], int]
CONTRACT: dict[str, list[Case]] = {
    "rotate90": [(lambda size: np.arange(COUNT) % 4, lambda ops, image, drawn: ops.rotate90(image, drawn), rotated, 0)],
    "erase": [
        (lambda size: some_boxes(size, 1), lambda ops, image, drawn: ops.erase(image, drawn, FILL), erased, 0),
        (lambda size: some_boxes(size, 3), lambda ops, image, drawn: ops.erase(image, drawn, FILL), erased, 0),
    ],
    "gray": [
        (lambda size: np.zeros(COUNT, int), lambda ops, image, drawn: ops.gray(image), lambda image, _: brightness(image), 1)
    ],
    "drop_colour": [
        (lambda size: np.arange(COUNT) % 3 == 0, lambda ops, image, drawn: ops.drop_colour(image, drawn), without_colour, 1)
    ],
    "patches": [
        (
            lambda size: some_corners(size, size // 3, 9),
            lambda ops, image, drawn: ops.patches(image, drawn, ops.size // 3, 9),
            lambda image, drawn: cut(image, drawn, image.shape[1] // 3),
            0,
        ),
        (
            lambda size: some_corners(size, 1, 2),
            lambda ops, image, drawn: ops.patches(image, drawn, 1, 2),
            lambda image, drawn: cut(image, drawn, 1),
            0,
        ),
    ],
}
CASES = [pytest.param(case, id=f"{word}-{i}") for word, cases in CONTRACT.items() for i, case in enumerate(cases)]


def by_cpu(say: Callable[..., Any], image: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    def spread(work: Callable[[int, int], None]) -> None:
        for row in range(len(image)):
            work(row, 0)

    return say(CpuOps(image.shape[1], spread), image, drawn)


def by_dali(say: Callable[..., Any], image: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    from nvidia.dali import Pipeline, fn, types

    from pipeline.engines.dali import DaliOps

    pipeline = Pipeline(batch_size=len(image), num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        pixels = fn.external_source(name="image", dtype=types.UINT8, layout="HWC")
        number = fn.external_source(name="drawn", dtype=types.INT32)
        pipeline.set_outputs(say(DaliOps(image.shape[1], "cpu"), pixels, number), number)  # an input without use would be gone
    pipeline.build()
    pipeline.feed_input("image", image)
    pipeline.feed_input("drawn", drawn.astype(np.int32))
    return np.array(np.from_dlpack(pipeline.run()[0].as_tensor()))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("engine", [by_cpu, by_dali])
def test_a_word_means_the_same_in_plain_numpy(engine: Callable[..., np.ndarray], size: int, case: Case) -> None:
    draw, say, reference, tolerance = case
    image, drawn = images(size), draw(size)
    before = image.copy()
    found, expected = engine(say, image, drawn), reference(image, drawn)
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= tolerance
    assert (difference > 0).mean() <= 0.01 * tolerance  # a grey is off by one in a thousand pixels, not in all
    assert np.array_equal(image, before), "the word changed its input, which other tasks share"


def test_every_word_of_the_vocabulary_is_under_contract_and_in_both_engines() -> None:
    from pipeline.engines.dali import DaliOps

    words = {name for name, _ in inspect.getmembers(Ops, inspect.isfunction) if not name.startswith("_")}
    assert words == set(CONTRACT)
    for ops in (CpuOps, DaliOps):
        spoken = {name for name, _ in inspect.getmembers(ops, inspect.isfunction) if not name.startswith("_")}
        assert spoken == words, ops
        for word in words:
            assert list(inspect.signature(getattr(ops, word)).parameters) == list(
                inspect.signature(getattr(Ops, word)).parameters
            )
