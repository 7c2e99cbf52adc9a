"""The header check: decides from an image's header whether it may be given to a decoder.

It is not optional. A wrong header can crash a decoder (a text file, an empty file, a JPEG that ends after its header), so every
image is checked here first; one that fails is quarantined with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.images.codec import nvimgcodec
from pipeline.images.layout import UPRIGHT, orientation, without_animation
from pipeline.images.unusual import UnusualImage, has_adobe_segment, is_usual, may_be_known_to_pillow, open_unusual

_JPEG_2000 = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_SIDEWAYS = (5, 6, 7, 8)
_TYPES = (np.dtype(np.uint8), np.dtype(np.uint16))
_KNOWN = (
    (b"\xff\xd8", "a damaged JPEG"),
    (b"\x89PNG", "a damaged PNG"),
    (b"RIFF", "a damaged WebP"),
    (b"II*", "a TIFF of an unknown kind"),
    (b"MM\0*", "a TIFF of an unknown kind"),
    (b"BM", "a damaged BMP"),
    (b"GIF8", "a GIF"),
    (b"<svg", "an SVG"),
    (b"<?xml", "XML"),
    (b"<", "HTML or XML"),
    (b"%PDF", "a PDF"),
    (b"PK", "a ZIP"),
)


@dataclass(frozen=True, slots=True)
class Header:
    """What an image's header says.

    Args:
        height: pixels, upright (after EXIF orientation).
        width: pixels, upright.
        orientation: EXIF orientation, 1 to 8, which says how the photo is stored.
        codec: name of the format: jpeg, png, webp, tiff, bmp, pnm.
        channels: 1 to 4.
        bits: 8 or 16.
        stream: the parsed code stream, or an `UnusualImage`, ready to decode.
        encoded: the file's bytes, without an animation.
    """

    height: int
    width: int
    orientation: int
    codec: str
    channels: int
    bits: int
    stream: Any
    encoded: bytes | memoryview

    @property
    def unusual(self) -> bool:
        """Whether Pillow decodes the image, which is slow."""
        return isinstance(self.stream, UnusualImage)


def check_header(encoded: bytes | memoryview, max_pixels: int) -> Header | str:
    """Parse an image's header without decoding it.

    Args:
        encoded: the file's bytes.
        max_pixels: more pixels than this are refused.

    Returns:
        The header, or the reason why the image must not be decoded. No content of a file makes this raise.
    """
    nvimgcodec()  # raises here where it is not installed: the file is not to blame
    try:
        return _parse(encoded, max_pixels)
    except Exception as error:  # noqa: BLE001  one bad file is one bad sample, whatever it does to a parser
        return f"the header check failed on it ({type(error).__name__}: {error})"


def _parse(encoded: bytes | memoryview, max_pixels: int) -> Header | str:
    if len(encoded) == 0:
        return "empty file"
    if bytes(encoded[:8]).startswith(_JPEG_2000):
        return "JPEG 2000, which is not decoded: damaged ones kill the decoder, or spoil its memory"
    turned = orientation(encoded)
    if isinstance(turned, str):
        return turned
    if not is_usual(encoded):
        return _by_pillow(encoded, max_pixels)
    encoded = without_animation(encoded)
    try:
        stream = nvimgcodec().CodeStream(encoded)
        height, width, codec = int(stream.height), int(stream.width), str(stream.codec_name)  # parsed at the first access
        channels, bits, kind = int(stream.num_channels), int(stream.precision), stream.dtype
    except (RuntimeError, TypeError):  # the latter for a type that has no name
        if may_be_known_to_pillow(encoded):
            return _by_pillow(encoded, max_pixels)
        return f"not a decodable image ({_looks_like(bytes(encoded[:16]))})"
    if wrong := _wrong_size(height, width, max_pixels):
        return wrong
    if codec == "jpeg" and channels == 4 and not has_adobe_segment(encoded):
        return _by_pillow(encoded, max_pixels)
    if not 1 <= channels <= 4:
        return f"{channels} channels; 1 to 4 can be decoded"
    if kind not in _TYPES:
        return f"pixels of type {kind}; 8 and 16 bits can be decoded"
    if turned in _SIDEWAYS:
        height, width = width, height
    return Header(height, width, turned, codec, channels, bits, stream, encoded)


def _by_pillow(encoded: bytes | memoryview, max_pixels: int) -> Header | str:
    found = open_unusual(encoded)
    if isinstance(found, str):
        return found if found != "not a decodable image" else f"{found} ({_looks_like(bytes(encoded[:16]))})"
    image, codec, channels = found
    wrong = _wrong_size(image.height, image.width, max_pixels)
    return wrong or Header(image.height, image.width, UPRIGHT, codec, channels, 8, image, encoded)


def _wrong_size(height: int, width: int, max_pixels: int) -> str | None:
    if height < 1 or width < 1:
        return f"the header gives a size of {width}x{height}"
    if height * width > max_pixels:
        return f"{width}x{height} is {height * width} pixels, over image.max_pixels of {max_pixels}"
    return None


def check_frames(files: Sequence[bytes | memoryview], max_pixels: int) -> list[Header] | str:
    """Parse the headers of a sample's image, or of its frames, which must be of one size.

    Returns:
        A header for each file, or the reason why the sample must not be decoded.
    """
    if len(files) == 1:
        found = check_header(files[0], max_pixels)
        return found if isinstance(found, str) else [found]
    headers: list[Header] = []
    for number, file in enumerate(files, 1):
        header = check_header(file, max_pixels)
        if isinstance(header, str):
            return f"frame {number}: {header}"
        headers.append(header)
    sizes = {f"{header.width}x{header.height}": None for header in headers}
    return headers if len(sizes) == 1 else f"frames of different sizes: {', '.join(sizes)}"


def _looks_like(start: bytes) -> str:
    for magic, name in _KNOWN:
        if start.startswith(magic):
            return f"it looks like {name}"
    if start[4:12] in (b"ftypavif", b"ftypheic", b"ftypmif1"):
        return "it looks like an AVIF or HEIC"
    return "its first bytes are " + start[:8].hex(" ")
