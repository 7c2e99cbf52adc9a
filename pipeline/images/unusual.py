"""Decodes with Pillow, slowly, the images that the engines' decoders do not know or show in wrong colours.

These are scans (TIFFs of 1, 2, 4 or 12 bits, with white as zero, in CMYK, of planes), JPEGs in CMYK that do not say so as Adobe
does, PNMs whose maximum is not that of their bytes, and BMPs of 16 bits, with masks, or whose pixels lie elsewhere than usual.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.images.codec import pillow
from pipeline.images.layout import TIFF_STARTS, describe_tiff, is_usual_tiff

_FORMATS = ("BMP", "JPEG", "PPM", "TIFF")
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr")
_GAP = rb"(?:\s|#[^\n]*\n)+"
_PNM = re.compile(rb"P([2356])" + _GAP + rb"\d+" + _GAP + rb"\d+" + _GAP + rb"(\d+)\s")
_BITS, _PHOTOMETRIC, _FORMAT = 258, 262, 339
_SAMPLE_TYPES = {2: "int", 3: "float", 5: "complex int", 6: "complex float"}


class Undecodable(Exception):
    """An image passed the header check and cannot be decoded; the message says why."""


@dataclass(frozen=True, slots=True)
class UnusualImage:
    """A file that Pillow opened, ready to decode; takes the place of a code stream.

    Args:
        encoded: the file's bytes.
        height: pixels, upright.
        width: pixels, upright.
    """

    encoded: bytes | memoryview
    height: int
    width: int

    def window(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Decode a part of the upright image, uint8 (height, width, 3).

        Raises:
            Undecodable: its data is damaged, or of a kind that Pillow does not know either.
        """
        from PIL import ImageOps

        try:
            with pillow().open(io.BytesIO(self.encoded), formats=_FORMATS) as image:
                tags = getattr(image, "tag_v2", {})
                negative, bits = tags.get(_PHOTOMETRIC) == 0, max(tags.get(_BITS, (16,)))
                image.load()
                upright = ImageOps.exif_transpose(image)
                whole = _rgb(upright, negative, bits)
        except Exception as error:  # noqa: BLE001  Pillow's plugins raise anything; it becomes one bad sample's reason
            raise Undecodable(f"the image's data cannot be decoded: {error}") from None
        if whole.shape[:2] != (self.height, self.width):
            raise Undecodable(f"the header gives {self.width}x{self.height}, the data {whole.shape[1]}x{whole.shape[0]}")
        return np.array(whole[top : top + height, left : left + width])

    def window_as_pnm(self, top: int, left: int, height: int, width: int) -> bytes:
        """Decode the same part, and encode it as a PNM, which any decoder knows."""
        return b"P6\n%d %d\n255\n" % (width, height) + self.window(top, left, height, width).tobytes()


def is_usual(encoded: bytes | memoryview) -> bool:
    """Whether the engines' decoders can take the file, by the header of a TIFF, BMP or PNM; other formats count as usual."""
    start = bytes(encoded[:4])
    if start in TIFF_STARTS:
        return is_usual_tiff(encoded)
    if start.startswith(b"BM"):
        return _is_usual_bmp(bytes(encoded[:64]))
    found = _PNM.match(bytes(encoded[:1024])) if start.startswith(b"P") else None
    digits_with_comments = start[:2] in (b"P2", b"P3") and b"#" in bytes(encoded[:1024])
    return not digits_with_comments and (found is None or int(found[2]) in (255, 65535))


def may_be_known_to_pillow(encoded: bytes | memoryview) -> bool:
    """Whether a file that no engine knows has a format that is given to Pillow: TIFF, BMP or PNM."""
    start = bytes(encoded[:4])
    return start in TIFF_STARTS or start.startswith((b"BM", b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"))


def has_adobe_segment(encoded: bytes | memoryview) -> bool:
    """Whether a JPEG, whose structure must be whole, has Adobe's segment, which says how to read its four colours."""
    at = 2
    while at + 4 <= len(encoded) and encoded[at + 1] != 0xDA:
        marker = encoded[at + 1]
        if marker == 0xEE and bytes(encoded[at + 4 : at + 9]) == b"Adobe":
            return True
        standalone = marker == 0x01 or 0xD0 <= marker <= 0xD8
        at += 1 if marker == 0xFF else 2 if standalone else 2 + (encoded[at + 2] << 8 | encoded[at + 3])
    return False


def open_unusual(encoded: bytes | memoryview) -> tuple[UnusualImage, str, int] | str:
    """Read an image's header with Pillow, without decoding.

    Returns:
        The image, its format (bmp, jpeg, pnm, tiff) and its channels, or the reason why it cannot be decoded.
    """
    from PIL import UnidentifiedImageError

    try:
        with pillow().open(io.BytesIO(encoded), formats=_FORMATS) as image:
            kind, mode, (width, height) = str(image.format), image.mode, image.size
            if kind not in ("TIFF", "BMP", "PPM") and image.getexif().get(274) in (5, 6, 7, 8):
                width, height = height, width
            channels, tags = len(image.getbands()), getattr(image, "tag_v2", {})
            form, bits = _SAMPLE_TYPES.get(tags.get(_FORMAT, (1,))[0]), tags.get(_BITS, (1,))[0]
    except UnidentifiedImageError:
        is_tiff = bytes(encoded[:4]) in TIFF_STARTS
        return f"not decodable: a {describe_tiff(encoded)}" if is_tiff else "not a decodable image"
    except Exception as error:  # noqa: BLE001  as above
        return f"not a decodable image: {type(error).__name__}: {error}"
    known = mode in _MODES or mode.startswith("I;16") or (mode == "I" and kind == "PPM")
    if form or not known:
        return f"pixels of type {f'{form}{bits}' if form else mode}; 1 to 16 bits without a sign can be decoded"
    codec = {"PPM": "pnm", "MPO": "jpeg"}.get(kind, kind.lower())
    return UnusualImage(encoded, height, width), codec, channels


def _is_usual_bmp(start: bytes) -> bool:
    """Whether a BMP has whole bytes or a palette, no compression or run lengths, and pixels right after header and palette."""
    offset, header = int.from_bytes(start[10:14], "little"), int.from_bytes(start[14:18], "little")
    if header == 12:  # OS/2
        bits = int.from_bytes(start[24:26], "little")
        return bits in (1, 4, 8, 24) and offset == 26 + (3 * 2**bits if bits <= 8 else 0)
    bits, compression, colours = (int.from_bytes(start[a:b], "little") for a, b in ((28, 30), (30, 34), (46, 50)))
    palette = 4 * (colours or (2**bits if bits <= 8 else 0))
    return (
        header in (40, 108, 124)
        and (bits, compression) in ((1, 0), (4, 0), (8, 0), (24, 0), (32, 0), (8, 1))
        and offset == 14 + header + palette
    )


def _rgb(image: Any, negative: bool, bits: int) -> np.ndarray:
    """A decoded image as uint8 (h, w, 3); of 16 bits the highest value is white, or, where it is `negative`, black."""
    if not image.mode.startswith("I"):
        return np.asarray(image.convert("RGB"))
    highest = 2**bits - 1 if image.mode != "I" else 65535
    grey = np.rint(np.asarray(image).astype(np.float32) * np.float32(255 / highest)).clip(0, 255).astype(np.uint8)
    return np.repeat((255 - grey if negative else grey)[..., None], 3, axis=2)
