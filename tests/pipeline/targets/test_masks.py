"""Masks are read as numbers, checked before any loss sees them, and cut as their images are."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.targets import BadTarget, Crops, MaskTarget
from pipeline.targets.masks import IGNORED, read_mask
from tests.pipeline.made_images import encode


def png(numbers: np.ndarray, mode: str = "L", **options: object) -> bytes:
    """A mask's file: grey levels, or with mode `P` places in a palette."""
    image = Image.fromarray(numbers)
    if mode == "P":
        image = Image.fromarray(numbers, "L").convert("L")
        image.putpalette(list(range(256)) * 3)
    return encode(image, "PNG", **options)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_crop_of_a_mask_is_the_nearest_pixels_of_its_window_mirrored(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w))
    size, mirror = data.draw(st.integers(1, 24)), data.draw(st.booleans())
    numbers = np.random.Generator(np.random.Philox(data.draw(st.integers(0, 99)))).integers(0, 9, (height, width), np.uint8)
    target = MaskTarget({number: 10 + number for number in range(9)})
    crops = Crops(np.array([[top, left, h, w]], np.int32), np.array([mirror]), size)

    made = target.columns([target.read(png(numbers), height, width)], crops)["mask"][0]

    assert made.shape == (size, size)
    for y in range(size):
        for x in range(size):
            seen = size - 1 - x if mirror else x
            row, column = int(np.floor((y + 0.5) * h / size)), int(np.floor((seen + 0.5) * w / size))
            assert made[y, x] == 10 + numbers[top + row, left + column]


@pytest.mark.parametrize("kind", ["grey", "palette", "16 bits", "1 bit"])
def test_numbers_are_read_from_every_kind_of_png_that_holds_numbers(kind: str) -> None:
    numbers = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    files = {
        "grey": lambda: png(numbers),
        "palette": lambda: png(numbers, "P"),
        "16 bits": lambda: encode(Image.fromarray(numbers.astype(np.uint16) * 300), "PNG"),
        "1 bit": lambda: encode(Image.fromarray(numbers.astype(bool)), "PNG"),
    }
    target = MaskTarget({0: 4, 1: 7, 300: 7})
    assert target.read(files[kind](), 2, 3).tolist() == [[4, 7, 7], [7, 4, 4]]


def test_pixels_that_do_not_count_stay_so_and_a_sample_without_a_mask_has_no_others() -> None:
    target = MaskTarget({0: 1})
    mask = target.read(png(np.array([[0, IGNORED]], np.uint8)), 1, 2)
    assert mask.tolist() == [[1, IGNORED]]
    crops = Crops(np.array([[0, 0, 1, 2], [0, 0, 0, 0]], np.int32), np.zeros(2, bool), 2)
    columns = target.columns([mask, None], crops)
    assert columns["mask"].tolist() == [[[1, IGNORED]] * 2, [[IGNORED] * 2] * 2]
    assert columns["mask"][0].nbytes == target.row_bytes(2)


def with_palette_alpha() -> bytes:
    image = Image.fromarray(np.zeros((4, 6), np.uint8)).convert("P")
    return encode(image, "PNG", transparency=0)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "no PNG that can be read"),
        (b"no picture at all", "no PNG that can be read"),
        (encode(Image.new("L", (6, 4)), "JPEG"), "no PNG that can be read"),
        (png(np.arange(24, dtype=np.uint8).reshape(4, 6))[:-20], "cannot be decoded"),
        (png(np.zeros((6, 4), np.uint8)), "its mask has 4x6 pixels, and the image 6x4"),
        (encode(Image.new("RGB", (6, 4)), "PNG"), r"colours \(RGB\)"),
        (encode(Image.new("RGBA", (6, 4)), "PNG"), r"colours \(RGBA\)"),
        (encode(Image.new("LA", (6, 4)), "PNG"), r"colours \(LA\)"),
        (with_palette_alpha(), "transparent colours"),
        (png(np.full((4, 6), 9, np.uint8)), "number 9 at 24 pixels, and no class has that number"),
        (encode(Image.fromarray(np.full((4, 6), 700, np.uint16)), "PNG"), "number 700 at 24 pixels"),
        (png(np.arange(24, dtype=np.uint8).reshape(4, 6)), "number 2 at 1 pixels, .* nor 3, 4, 5, 6, ..."),
    ],
)  # fmt: skip
def test_a_mask_that_cannot_be_used_is_refused_in_words(body: bytes, reason: str) -> None:
    with pytest.raises(BadTarget, match=reason):
        MaskTarget({0: 0, 1: 1}).read(body, 4, 6)


@given(st.binary(max_size=60), st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_damaged_files_are_bad_targets_and_nothing_else(junk: bytes, place: int) -> None:
    body = png(np.arange(64, dtype=np.uint8).reshape(8, 8))
    spoilt = body[: place % len(body)] + junk + body[place % len(body) + len(junk) :]
    try:
        numbers = read_mask(io.BytesIO(spoilt).getvalue(), (8, 8))
    except BadTarget:
        return
    assert numbers.shape == (8, 8)
