"""Which way is up: EXIF blocks, odd and damaged ones too, and TIFF directories are read as far as they tell."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.pipeline.images.headers import chunk, exif, header, refusal, segment, tiff, webp_with
from tests.pipeline.made_images import HEIGHT, WIDTH, good, photo, seen_by_pil, turned


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(10))
def test_the_size_is_that_of_the_upright_photo(format: str, orientation: int) -> None:
    encoded = turned(format, orientation)
    found = header(encoded)
    assert (found.width, found.height) == seen_by_pil(encoded).size
    assert (found.width < found.height) == (orientation in (5, 6, 7, 8))


ASIDE = (274, 3, 1, struct.pack("<Hxx", 6))
ASIDE_BIG = (274, 3, 1, struct.pack(">Hxx", 6))
OUTSIDE = (271, 2, 50, struct.pack("<I", 5000))
BLOCKS = {
    "little endian": (exif(ASIDE), 6),
    "big endian": (exif(ASIDE_BIG, order=">"), 6),
    "a long": (exif((274, 4, 1, struct.pack("<I", 6))), 6),
    "a long, big endian": (exif((274, 4, 1, struct.pack(">I", 6)), order=">"), 6),
    "twice": (exif(ASIDE, (274, 3, 1, struct.pack("<Hxx", 1))), 6),
    "beside damage": (exif(OUTSIDE, ASIDE, OUTSIDE), 6),
    "a text": (exif((274, 2, 2, b"6\0\0\0")), 1),
    "nothing": (exif((274, 3, 0, struct.pack("<Hxx", 6))), 1),
    "out of range": (exif((274, 3, 1, struct.pack("<Hxx", 9))), 1),
    "zero": (exif((274, 3, 1, bytes(4))), 1),
    "cut short": (exif(ASIDE)[:14], 1),
    "more entries than there are": (exif(ASIDE)[:8] + struct.pack("<H", 90) + exif(ASIDE)[10:], 1),
    "values outside": (exif((274, 4, 9, struct.pack("<I", 5000))), 1),
    "no mark": (exif(ASIDE, mark=7), 1),
    "no order": (b"XX" + exif(ASIDE_BIG, order=">")[2:], 1),
    "empty": (b"", 1),
    "directory outside": (b"II*\0\xff\xff\0\0", 1),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_damaged_and_odd_exif_blocks_are_read_as_far_as_they_tell(name: str, format: str) -> None:
    block, orientation = BLOCKS[name]
    if format == "JPEG":
        encoded = good()["jpeg"][:2] + segment(b"Exif\0\0" + block) + good()["jpeg"][2:]
    elif format == "PNG":
        encoded = good()["png"][:33] + chunk(b"eXIf", block) + good()["png"][33:]
    else:
        encoded = webp_with(block)
    found = header(encoded)
    assert found.orientation == orientation
    assert (found.width, found.height) == ((HEIGHT, WIDTH) if orientation == 6 else (WIDTH, HEIGHT))


def test_the_first_exif_block_of_a_jpeg_that_tells_is_the_one_that_counts() -> None:
    blocks = [exif((271, 2, 4, b"abc\0")), exif(ASIDE), exif((274, 3, 1, struct.pack("<Hxx", 1)))]
    encoded = good()["jpeg"][:2] + b"".join(segment(b"Exif\0\0" + block) for block in blocks) + good()["jpeg"][2:]
    assert header(encoded).orientation == 6


@pytest.mark.parametrize("order", "<>")
def test_tiffs_of_both_byte_orders_and_both_sizes_are_read(order: str) -> None:
    pixels = np.asarray(photo())
    for big in (False, True):
        encoded = tiff(pixels, order, big, orientation=6)
        assert (header(encoded).orientation, header(encoded).width, header(encoded).height) == (6, HEIGHT, WIDTH)
        assert "truncated TIFF" in refusal(tiff(pixels, order, big, orientation=1, cut=1))


def test_damaged_tiff_directories_are_refused_in_words() -> None:
    whole = tiff(np.asarray(photo()), "<", False, orientation=1)
    assert "directory lies outside" in refusal(whole[:4] + struct.pack("<I", 10**9) + whole[8:])
    assert "directory lies outside" in refusal(whole[:9] + b"\xff" + whole[10:])  # 65,289 entries
    without_strips = whole.replace(struct.pack("<HH", 273, 4), struct.pack("<HH", 60000, 4))
    assert "does not say where its pixels are" in refusal(without_strips)
