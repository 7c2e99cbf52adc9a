"""Crops lie inside the photo, have the drawn area and ratio, and are torchvision's in distribution."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Picture
from PIL import ImageOps

from pipeline.draws import Draws, Stream
from pipeline.recipe.schema import Image
from pipeline.rendering.windows import center_windows, flips, random_windows, stored

KEYS = 10_000
USUAL = (Image().scale, Image().ratio)


def stream(n: int, epoch: int = 0) -> Stream:
    return Draws(7, epoch, np.arange(n, dtype=np.uint64)).stream("crop")


@given(
    sizes=st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=20),
    scale=st.tuples(st.floats(1e-6, 1), st.floats(1e-6, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)).map(sorted),
)
def test_windows_lie_inside_any_photo(sizes: list[tuple[int, int]], scale: list[float], ratio: list[float]) -> None:
    heights, widths = np.array(sizes).T
    windows = random_windows(stream(len(sizes)), heights, widths, tuple(scale), tuple(ratio))
    assert windows.dtype == np.int32
    assert windows.shape == (len(sizes), 4)
    top, left, height, width = windows.T.astype(np.int64)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (top + height <= heights).all()
    assert (left + width <= widths).all()


def test_area_ratio_and_place_are_spread_as_asked() -> None:
    heights, widths = np.full(KEYS, 400), np.full(KEYS, 600)
    top, left, height, width = random_windows(stream(KEYS), heights, widths, (0.1, 0.3), (0.5, 2.0)).T
    area, ratio = height * width / (400 * 600), np.log(width / height)
    assert area.min() > 0.099
    assert area.max() < 0.301
    # All tries fit here, so area and log ratio are uniform: compare the deciles.
    deciles = np.linspace(0.1, 0.9, 9)
    assert np.abs(np.quantile(area, deciles) - (0.1 + 0.2 * deciles)).max() < 0.005
    assert np.abs(np.quantile(ratio, deciles) - (deciles * 2 - 1) * np.log(2)).max() < 0.04
    for at, room in ((top, 400 - height), (left, 600 - width)):
        assert np.abs(np.quantile(at / room, deciles) - deciles).max() < 0.03


def test_a_photo_too_narrow_for_the_ratio_gives_its_middle_at_the_nearest_ratio() -> None:
    """As torchvision's RandomResizedCrop does when ten tries have failed."""
    windows = random_windows(stream(2), np.array([1000, 10]), np.array([10, 1000]), (0.9, 1.0), (3 / 4, 4 / 3))
    assert windows.tolist() == [[493, 0, 13, 10], [0, 493, 10, 13]]


def test_a_crop_depends_on_its_own_photo_only() -> None:
    heights, widths = np.array([300, 50, 700]), np.array([200, 90, 40])
    together = random_windows(stream(3), heights, widths, *USUAL)
    alone = Draws(7, 0, np.array([2], np.uint64)).stream("crop")
    assert random_windows(alone, heights[2:], widths[2:], *USUAL).tolist() == together[2:].tolist()


def test_no_photos_no_windows() -> None:
    none = np.empty(0, np.int64)
    assert random_windows(stream(0), none, none, *USUAL).shape == (0, 4)
    assert center_windows(none, none).shape == (0, 4)


def test_the_centre_is_the_largest_square_in_the_middle() -> None:
    assert center_windows(np.array([10, 7, 1]), np.array([6, 20, 1])).tolist() == [[2, 0, 6, 6], [0, 6, 7, 7], [0, 0, 1, 1]]


def test_half_of_the_photos_are_mirrored_and_others_in_another_epoch() -> None:
    first, second = flips(stream(KEYS)), flips(stream(KEYS, epoch=1))
    assert first.dtype == bool
    for share in (first.mean(), second.mean(), (first == second).mean()):
        assert abs(share - 0.5) < 0.025  # five standard deviations


@given(orientation=st.integers(1, 8), size=st.tuples(st.integers(1, 30), st.integers(1, 30)), data=st.data())
def test_a_window_of_the_upright_photo_is_found_in_the_photo_as_stored(
    orientation: int, size: tuple[int, int], data: st.DataObject
) -> None:
    raw = np.arange(size[0] * size[1], dtype=np.int32).reshape(size)
    picture = Picture.fromarray(raw)
    picture.getexif()[274] = orientation
    upright = np.asarray(ImageOps.exif_transpose(picture))
    top, left = (data.draw(st.integers(0, side - 1)) for side in upright.shape)
    height, width = data.draw(st.integers(1, upright.shape[0] - top)), data.draw(st.integers(1, upright.shape[1] - left))
    sides = (np.array([side]) for side in upright.shape)
    windows, turn, mirror = stored(np.array([[top, left, height, width]]), *sides, np.array([orientation]))
    t, x, h, w = windows[0]
    crop = raw[t : t + h, x : x + w]
    assert crop.shape == (h, w)
    crop = np.rot90(crop) if turn[0] else crop
    crop = crop[:, ::-1] if mirror[0, 0] else crop
    crop = crop[::-1] if mirror[0, 1] else crop
    assert np.array_equal(crop, upright[top : top + height, left : left + width])
