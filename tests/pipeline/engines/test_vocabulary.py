"""The contract of the pixel vocabulary: every word, in both engines, against plain numpy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from skimage import data

from pipeline.draws import Draws
from pipeline.engines.cpu_ops import CpuOps
from pipeline.engines.noise_field import REACH, normal_field
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


def rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def noisy(image: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    size, field = image.shape[1], normal_field(image.shape[1]).astype(float)
    out = []
    for pixels, (top, left, top2, left2, gain, level) in zip(image.astype(float), drawn):
        places = ((int(top), int(left)), (int(top2), int(left2)))
        normal = sum(field[y : y + size, x : x + size] for y, x in places) / np.sqrt(2)
        out.append(rounded(pixels + np.sqrt(gain * pixels + level**2) * normal))
    return np.stack(out)


def some_noise(size: int) -> np.ndarray:
    corners = np.random.default_rng(3).integers(0, REACH + 1, (COUNT, 4))
    strengths = np.stack([np.arange(COUNT) % 3, np.arange(COUNT) % 4 * 15], axis=1)  # none at all among them
    return np.concatenate([corners, strengths], axis=1).astype(np.float32)


def apply_noise(ops: Any, image: Any, drawn: Any) -> Any:
    """Noise with all of its parameters in one array; the corners are rounded, as a task draws whole numbers."""
    if isinstance(drawn, np.ndarray):
        return ops.noise(image, drawn[:, :4].astype(int).reshape(-1, 2, 2), drawn[:, 4], drawn[:, 5])
    from nvidia.dali import fn, types

    corners = fn.reshape(fn.cast(drawn[0:4], dtype=types.INT32), shape=[2, 2])
    return ops.noise(image, corners, drawn[4], drawn[5])


def blurred(image: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    out = []
    for pixels, width in zip(image, sigma):
        if width:
            far = int(np.ceil(3 * width))
            kernel = np.exp(-(np.arange(-far, far + 1) ** 2) / (2 * float(width) ** 2))
            kernel /= kernel.sum()
            padded = np.pad(pixels.astype(float), ((far, far), (far, far), (0, 0)), "reflect")
            rows = sum(k * padded[i : i + len(pixels)] for i, k in enumerate(kernel))
            pixels = rounded(sum(k * rows[:, i : i + len(pixels)] for i, k in enumerate(kernel)))
        out.append(pixels)
    return np.stack(out)


def some_widths(size: int) -> np.ndarray:
    return np.linspace(0, 4, COUNT, dtype=np.float32)


def recoloured(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return rounded(np.einsum("nij,nhwj->nhwi", matrix[:, :, :3], image) + matrix[:, None, None, :, 3])


def some_matrices(size: int) -> np.ndarray:
    matrix = np.random.default_rng(4).normal(0, 0.3, (COUNT, 3, 4)) + np.eye(3, 4)
    matrix[:, :, 3] *= 60
    return matrix.astype(np.float32)


def jittered(image: np.ndarray, maps: np.ndarray) -> np.ndarray:
    shift = maps[:, 0, 3].astype(float) * (image.mean((1, 2)) @ [0.299, 0.587, 0.114])
    shift = np.broadcast_to(shift[:, None, None], (len(maps), 3, 1))
    return recoloured(image, np.concatenate([maps[:, :, :3].astype(float), shift], axis=2))


def some_jitter(size: int) -> np.ndarray:
    maps = np.random.default_rng(7).normal(0, 0.3, (COUNT, 3, 4)) + np.eye(3, 4)
    maps[::4] = np.eye(3, 4)  # which change nothing
    return maps.astype(np.float32)


def say_jitter(ops: Any, image: Any, maps: Any) -> Any:
    if isinstance(maps, np.ndarray):
        return ops.jitter(image, maps[:, :, :3], maps[:, 0, 3])
    return ops.jitter(image, maps[:, 0:3], maps[0, 3])


def solarised(image: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    return np.where(image >= threshold[:, None, None, None], 255 - image, image)


def some_thresholds(size: int) -> np.ndarray:
    return np.array([0, 1, 100, 127, 128, 129, 200, 254, 255, 256, 256, 256])


def reduced(image: np.ndarray, factor: int) -> np.ndarray:
    n, side = len(image), image.shape[1] // factor
    return np.floor(image.reshape(n, side, factor, side, factor, 3).mean((2, 4)) + 0.5).astype(np.uint8)


def warped(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    side = image.shape[1] - 5
    y, x = np.mgrid[0:side, 0:side] + 0.5
    at = np.einsum("nij,jyx->niyx", matrix.astype(float), np.stack([x, y, np.ones_like(x)])) - 0.5
    return np.stack(
        [
            rounded(
                np.stack([map_coordinates(pixels[..., c].astype(float), xy[::-1], order=1, mode="nearest") for c in range(3)], -1)
            )
            for pixels, xy in zip(image, at)
        ]
    )


def some_maps(size: int) -> np.ndarray:
    """Quarter turns and shifts by whole pixels, then turns by any angle with some zoom."""
    random = np.random.default_rng(5)
    maps = []
    for i in range(COUNT):
        angle, zoom = (i % 4 * np.pi / 2, 1.0) if i < 4 else (random.uniform(0, 7), random.uniform(0.6, 1.2))
        turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        maps.append(np.column_stack([turn, size / 2 - turn @ [size / 2, size / 2] + (i % 3 if i < 4 else random.uniform(-9, 9))]))
    return np.stack(maps).astype(np.float32)


def pasted(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask[..., None] > 0, np.rot90(image, 2, (1, 2)), image)


def some_mask(size: int) -> np.ndarray:
    return np.random.default_rng(6).integers(0, 2, (COUNT, size, size), np.uint8)


def say_paste(ops: Any, image: Any, mask: Any) -> Any:
    if isinstance(mask, np.ndarray):
        return ops.paste(image, ops.rotate90(image, np.full(len(image), 2)), mask)
    from nvidia.dali import types

    return ops.paste(image, ops.rotate90(image, types.Constant(2)), mask)


# For each word: what is drawn, how it is said, what plain numpy makes of it, and the share of pixels that may be one level off.
# Sums of products may be rounded the other way; everything else may change no pixel.
Case = tuple[Callable[[int], np.ndarray], Callable[..., Any], Callable[[np.ndarray, np.ndarray], np.ndarray], float]
CONTRACT: dict[str, list[Case]] = {
    "rotate90": [(lambda size: np.arange(COUNT) % 4, lambda ops, image, drawn: ops.rotate90(image, drawn), rotated, 0)],
    "erase": [
        (lambda size: some_boxes(size, 1), lambda ops, image, drawn: ops.erase(image, drawn, FILL), erased, 0),
        (lambda size: some_boxes(size, 3), lambda ops, image, drawn: ops.erase(image, drawn, FILL), erased, 0),
    ],
    "gray": [
        (lambda size: np.zeros(COUNT, int), lambda ops, image, drawn: ops.gray(image), lambda image, _: brightness(image), 0.01)
    ],
    "drop_colour": [
        (lambda size: np.arange(COUNT) % 3 == 0, lambda ops, image, drawn: ops.drop_colour(image, drawn), without_colour, 0.01)
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
    "noise": [(some_noise, apply_noise, noisy, 0.001)],
    "blur": [(some_widths, lambda ops, image, drawn: ops.blur(image, drawn), blurred, 0.001)],
    "recolour": [(some_matrices, lambda ops, image, drawn: ops.recolour(image, drawn), recoloured, 0.001)],
    "jitter": [(some_jitter, say_jitter, jittered, 0.001)],
    "solarise": [(some_thresholds, lambda ops, image, drawn: ops.solarise(image, drawn), solarised, 0)],
    "affine": [(some_maps, lambda ops, image, drawn: ops.affine(image, drawn, ops.size - 5), warped, 0.01)],
    "paste": [(some_mask, say_paste, pasted, 0)],
    "reduce": [
        (
            lambda size: np.zeros(COUNT, int),
            lambda ops, image, drawn, factor=factor: ops.reduce(image, factor),
            lambda image, _, factor=factor: reduced(image, factor),
            0,
        )
        for factor in (2, 4, 8)
    ],
}
CASES = [pytest.param(case, id=f"{word}-{i}") for word, cases in CONTRACT.items() for i, case in enumerate(cases)]


def by_cpu(apply: Callable[..., Any], image: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    return apply(CpuOps(image.shape[1]), image, drawn)


def by_dali(apply: Callable[..., Any], image: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    from nvidia.dali import Pipeline, fn, types

    from pipeline.engines.dali import DaliOps

    fed = {np.dtype(np.float32): types.FLOAT, np.dtype(np.uint8): types.UINT8}
    pipeline = Pipeline(batch_size=len(image), num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        pixels = fn.external_source(name="image", dtype=types.UINT8, layout="HWC")
        number = fn.external_source(name="drawn", dtype=fed.get(drawn.dtype, types.INT32))
        pipeline.set_outputs(apply(DaliOps(image.shape[1], "cpu"), pixels, number), number)  # an input without use would be gone
    pipeline.build()
    pipeline.feed_input("image", image)
    pipeline.feed_input("drawn", drawn if drawn.dtype in fed else drawn.astype(np.int32))
    return np.array(np.from_dlpack(pipeline.run()[0].as_tensor()))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [32, 40])
@pytest.mark.parametrize("engine", [by_cpu, by_dali])
def test_a_word_means_the_same_in_plain_numpy(engine: Callable[..., np.ndarray], size: int, case: Case) -> None:
    draw, apply, reference, off_by_one = case
    image, drawn = images(size), draw(size)
    before = image.copy()
    found, expected = engine(apply, image, drawn), reference(image, drawn)
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= (off_by_one > 0)
    assert (difference > 0).mean() <= off_by_one
    assert np.array_equal(image, before), "the word changed its input, which other tasks share"


def test_noise_has_the_strength_that_is_asked_for() -> None:
    """Mean and deviation over many drawn places, of flat grey: those of a normal distribution."""
    count, size = 400, 32
    corners = Draws(0, 0, np.arange(count, dtype=np.uint64)).stream("here").integers("corners", REACH + 1, shape=(2, 2))
    image = np.full((count, size, size, 3), 100, np.uint8)
    for gain, level, expected in [(0.0, 20.0, 20.0), (2.0, 0.0, 200**0.5), (1.0, 5.0, 125**0.5)]:
        found = CpuOps(size).noise(image, corners, np.full(count, gain), np.full(count, level)) - 100.0
        assert abs(found.mean()) < 0.3
        assert abs(found.std() / expected - 1) < 0.02
        assert abs((found**3).mean()) / expected**3 < 0.1


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
