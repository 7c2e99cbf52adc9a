"""Decoding at reduced size: only where a recipe asks for it and the crop allows it, and never far from the full decode."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.engines.cpu import CpuEngine
from pipeline.errors import UserError
from pipeline.recipe import parse_recipe
from pipeline.rendering.engine import settled
from tests.pipeline.made_images import encode, good, photo, request, turned

SIZE = 24
# Mean difference, levels of 255, from the full decode of the window rounded to reduced pixels.
FAR = 3.0


def crops(encoded: list[bytes], windows: list[tuple[int, int, int, int]], reduced: bool, threads: int = 1) -> np.ndarray:
    pixels, failed = CpuEngine({}, SIZE, threads, reduced).run(request(encoded, windows))
    assert not failed
    return pixels["image"]


@pytest.mark.parametrize(("side", "factor"), [(2 * SIZE, 2), (3 * SIZE + 5, 2), (4 * SIZE, 4), (5 * SIZE + 7, 4)])
def test_a_reduced_crop_is_near_the_full_one_and_not_the_same(side: int, factor: int) -> None:
    rounded = round(side / factor) * factor
    near, full = (crops([good()["jpeg"]], [(4, 8, n, n)], reduced) for n, reduced in ((side, True), (rounded, False)))
    assert 0 < np.abs(near.astype(int) - full).mean() < FAR


def test_a_photo_that_lies_on_its_side_is_reduced_as_it_is_stored() -> None:
    upright, aside = (crops([turned("JPEG", o, quality=92)], [(4, 8, 4 * SIZE, 4 * SIZE)], True) for o in (1, 3))
    assert upright.shape == aside.shape
    stored = crops([turned("JPEG", 1, quality=92)], [(132 - 4 - 4 * SIZE, 180 - 8 - 4 * SIZE, 4 * SIZE, 4 * SIZE)], True)
    np.testing.assert_array_equal(aside[0], stored[0, ::-1, ::-1])


@pytest.mark.parametrize("name", ["grey jpeg", "cmyk jpeg", "png", "webp", "tiff"])
def test_what_cannot_be_reduced_is_decoded_in_full(name: str) -> None:
    files, windows = [good()[name]], [(0, 0, 4 * SIZE, 4 * SIZE)]
    np.testing.assert_array_equal(crops(files, windows, True), crops(files, windows, False))


def test_a_crop_of_less_than_twice_its_size_is_decoded_in_full() -> None:
    files, windows = [good()["jpeg"]], [(3, 5, 2 * SIZE - 1, 4 * SIZE)]
    np.testing.assert_array_equal(crops(files, windows, True), crops(files, windows, False))


def test_a_crop_does_not_depend_on_what_was_decoded_before_it_or_beside_it() -> None:
    files = [encode(photo(180 - 11 * i, 132 - 5 * i), "JPEG") for i in range(6)]
    windows = [(i, 2 * i, 2 * SIZE + 3 * i, 4 * SIZE - i) for i in range(6)]
    alone = np.concatenate([crops([file], [window], True) for file, window in zip(files, windows)])
    np.testing.assert_array_equal(crops(files, windows, True), alone)
    np.testing.assert_array_equal(crops(files[::-1], windows[::-1], True, threads=2)[::-1], alone)


def test_damage_ends_as_it_does_without() -> None:
    whole = good()["jpeg"]
    cut = whole[: len(whole) // 3] + b"\xff\xd9"
    for reduced in (True, False):
        pixels, failed = CpuEngine({}, SIZE, 1, reduced).run(request([cut, whole], [(0, 0, 120, 120)] * 2))
        assert 1 not in failed
        assert pixels["image"][1].any()


def test_it_is_part_of_what_the_engine_says_of_itself() -> None:
    assert "simplejpeg" in CpuEngine({}, SIZE, 1, True).identity()
    assert "simplejpeg" not in CpuEngine({}, SIZE, 1, False).identity()


def test_dali_is_not_asked_for_what_it_cannot_do() -> None:
    document = {"name": "a", "seed": 0, "corpus": {"shards": "x"}, "image": {"reduced": True}}
    assert settled(parse_recipe({**document, "placement": {"gpus": 1}})).engine == "cpu"
    with pytest.raises(UserError, match="engine: cpu"):
        parse_recipe({**document, "engine": "dali"})
