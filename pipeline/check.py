"""The header check: what may go to a decoder at all.

Not optional. A decoder may be killed by a header that lies (a text file, an empty one, a JPEG that ends after its header), so
every image passes here first and what does not pass is quarantined with a reason in words.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

from pipeline.codec import nvimgcodec

_JPEG_STANDALONE = frozenset((0x01, *range(0xD0, 0xD9)))
_EXIF = {"jpeg": re.compile(rb"Exif\x00\x00"), "png": re.compile(rb"eXIf"), "webp": re.compile(rb"EXIF"), "tiff": re.compile(rb"")}
_ORIENTATION = 0x0112
_PHOTOMETRIC = 262


@dataclass(frozen=True, slots=True)
class Header:
    """What an image's header says.

    Args:
        height: pixels, upright (after EXIF orientation).
        width: pixels, upright.
        codec: name of the format: jpeg, png, webp, tiff, bmp, pnm, jpeg2k.
        channels: 1 to 4.
        bits: 8 or 16 (or fewer, for bilevel images).
        stream: the parsed code stream, ready to decode.
    """

    height: int
    width: int
    codec: str
    channels: int
    bits: int
    stream: Any


def check_header(encoded: bytes | memoryview, max_pixels: int) -> Header | str:
    """Parse an image's header without decoding it.

    Args:
        encoded: the file's bytes.
        max_pixels: more pixels than this are refused.

    Returns:
        The header, or the reason for which the image must not be decoded.
    """
    if len(encoded) == 0:
        return "empty file"
    try:
        stream = nvimgcodec().CodeStream(encoded)
        height, width, codec = int(stream.height), int(stream.width), str(stream.codec_name)  # parsed at the first question
        channels, bits, kind = int(stream.num_channels), int(stream.precision), str(stream.dtype)
    except RuntimeError:
        return f"not a decodable image ({_looks_like(bytes(encoded[:16]))})"
    if height < 1 or width < 1:
        return f"the header gives a size of {width}x{height}"
    if height * width > max_pixels:
        return f"{width}x{height} is {height * width} pixels, over image.max_pixels of {max_pixels}"
    if not 1 <= channels <= 4:
        return f"{channels} channels; 1 to 4 can be decoded"
    if kind not in ("uint8", "uint16"):
        return f"pixels of type {kind}; 8 and 16 bits can be decoded"
    if codec == "jpeg" and (reason := _jpeg_unfinished(encoded)):
        return reason
    orientation = 1
    if (pattern := _EXIF.get(codec)) and pattern.search(encoded):
        tags = _tags(encoded)
        if isinstance(tags, str):
            return tags
        orientation = tags.get(_ORIENTATION, 1)
        if codec == "tiff" and tags.get(_PHOTOMETRIC, 2) not in (0, 1, 2, 3):
            return f"TIFF with photometric interpretation {tags.get(_PHOTOMETRIC)}; grey, RGB and palette can be decoded"
    if orientation in (5, 6, 7, 8):
        height, width = width, height
    return Header(height, width, codec, channels, bits, stream)


def _jpeg_unfinished(encoded: bytes | memoryview) -> str | None:
    """Walk the segments up to the scan: a JPEG must have one, and an end marker after it."""
    at, size = 2, len(encoded)
    while at + 4 <= size:
        if encoded[at] != 0xFF:
            return f"damaged JPEG: no marker at byte {at}"
        marker = encoded[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _JPEG_STANDALONE:
            at += 2
        elif marker == 0xDA:
            tail = bytes(encoded[max(at, size - 4096) :])
            if tail.rfind(b"\xff\xd9") < 0 and bytes(encoded[at:]).rfind(b"\xff\xd9") < 0:
                return "truncated JPEG: no end-of-image marker"
            return None
        else:
            at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return "truncated JPEG: it ends inside its header"


def _tags(encoded: bytes | memoryview) -> dict[int, Any] | str:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return dict(image.getexif())
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"damaged metadata: {error}"


def _looks_like(start: bytes) -> str:
    for magic, name in ((b"GIF8", "a GIF"), (b"<svg", "an SVG"), (b"<?xml", "XML"), (b"<", "HTML or XML"), (b"%PDF", "a PDF"), (b"PK", "a ZIP")):
        if start.startswith(magic):
            return f"it looks like {name}"
    if start[4:12] in (b"ftypavif", b"ftypheic", b"ftypmif1"):
        return "it looks like an AVIF or HEIC"
    return "its first bytes are " + start[:8].hex(" ")
