"""The header check: good files pass with their upright size, everything else is refused in words before a decoder sees it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.images.check import Header, check_header
from tests.pipeline.images.headers import ANY, chunk, header, refusal
from tests.pipeline.made_images import HEIGHT, WIDTH, encode, good, photo, seen_by_pil

AVIF = b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miaf" + bytes(100)


@pytest.mark.parametrize("name", good())
def test_good_files_pass_with_the_size_that_pil_sees(name: str) -> None:
    found = header(good()[name])
    assert (found.width, found.height) == seen_by_pil(good()[name]).size
    assert header(memoryview(good()[name])).height == found.height  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("jpeg", ("jpeg", 3, 8)),
        ("cmyk jpeg", ("jpeg", 4, 8)),
        ("grey png", ("png", 1, 8)),
        ("16 bits", ("png", 1, 16)),
        ("alpha", ("png", 4, 8)),
        ("webp", ("webp", 3, 8)),
        ("tiff", ("tiff", 3, 8)),
        ("bmp", ("bmp", 3, 8)),
        ("ppm", ("pnm", 3, 8)),
    ],
)
def test_a_header_tells_format_channels_and_depth(name: str, expected: tuple[str, int, int]) -> None:
    found = header(good()[name])
    assert (found.codec, found.channels, found.bits) == expected


@pytest.mark.parametrize(
    ("encoded", "words"),
    [
        (b"", "empty file"),
        (b"hello, world\n" * 50, "first bytes are 68 65 6c 6c"),
        (bytes(1000), "first bytes are 00 00"),
        (b"\xff\xd8", "ends inside its header"),
        (b"\xff\xd8\xff", "ends inside its header"),
        (encode(photo(), "GIF"), "a GIF"),
        (AVIF, "an AVIF"),
        (b"RIFF\x08\0\0\0WEBPVP8X", "a damaged WebP"),
        (b"\x89PNG\r\n\x1a\n", "no end chunk"),
        (b"II*\0", "directory lies outside"),
        (b"BM", "a damaged BMP"),
        (b"<html><body>404 not found</body></html>", "HTML"),
        (b"<?xml version='1.0'?><svg/>", "XML"),
        (b"%PDF-1.4 ...", "a PDF"),
        (encode(photo().convert("LAB"), "TIFF"), "pixels of type LAB"),
        (encode(photo().convert("F"), "TIFF"), "pixels of type float32"),
        (encode(photo(), "JPEG2000"), "JPEG 2000"),
        (encode(photo(), "JPEG2000", no_jp2=True), "JPEG 2000"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_decoded_is_refused_with_the_reason(encoded: bytes, words: str) -> None:
    assert words in refusal(encoded)


def test_the_extension_plays_no_part() -> None:
    """The check reads only the bytes and is given no name."""
    assert header(good()["png"]).codec == "png"


def test_a_photo_over_the_pixel_cap_is_refused_without_being_decoded() -> None:
    huge = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    encoded = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", huge) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    assert refusal(encoded) == "60000x60000 is 3600000000 pixels, over image.max_pixels of 100000000"
    assert refusal(good()["jpeg"], WIDTH * HEIGHT - 1).endswith(f"over image.max_pixels of {WIDTH * HEIGHT - 1}")
    assert isinstance(check_header(good()["jpeg"], WIDTH * HEIGHT), Header)


TRUNCATED = {
    "jpeg": "JPEG",
    "progressive": "JPEG",
    "png": "PNG",
    "webp": "WebP",
    "lossless webp": "WebP",
    "tiff": "TIFF",
    "lzw tiff": "TIFF",
}


@pytest.mark.parametrize("name", TRUNCATED)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused_at_any_length(name: str, share: float) -> None:
    whole = good()[name]
    short = whole[: int(share * len(whole))]
    reason = refusal(short)
    if len(short) > 20:
        assert TRUNCATED[name] in reason


def test_a_jpeg_that_is_a_header_only_is_refused() -> None:
    whole = good()["jpeg"]
    assert "ends inside its header" in refusal(whole[: whole.index(b"\xff\xda")])
    assert "no end-of-image" in refusal(whole[: whole.index(b"\xff\xda") + 14])


def test_the_end_marker_of_a_thumbnail_does_not_pass_for_the_photo_s() -> None:
    thumbnail = b"Exif\0\0" + encode(photo(40, 30), "JPEG")
    whole = encode(photo(), "JPEG", exif=thumbnail)
    assert isinstance(check_header(whole, ANY), Header)
    assert "no end-of-image" in refusal(whole[:-2])


def test_bytes_after_the_end_of_a_jpeg_do_no_harm() -> None:
    assert isinstance(check_header(good()["jpeg"] + bytes(100_000), ANY), Header)


def test_jpeg_segments_that_do_not_lead_to_a_scan_are_refused() -> None:
    whole = good()["jpeg"]
    assert "no marker at byte" in refusal(whole[:4] + b"\0\3" + whole[6:])
    padded = whole[:2] + b"\xff\xff\xff" + whole[2:]  # fill bytes are allowed
    assert isinstance(check_header(padded, ANY), Header)
