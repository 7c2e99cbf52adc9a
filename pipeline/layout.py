"""How image files are laid out: is the file whole, and which way is up?

Only the structure is read, never the pixels. The orientation is read by the decoder's own rules, those for damaged and misplaced
tags included: a crop's window is drawn in the upright frame, so check and decoder must agree on which way that is.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Encoded = bytes | memoryview
_Order = Literal["little", "big"]

UPRIGHT = 1
_ORIENTATION = 274

_JPEG_STANDALONE = frozenset((0x01, *range(0xD0, 0xD9)))
_JPEG_TAIL = 4096

# The reader of EXIF gives up on a block where one of these lies outside it: texts, and how many fractions other tags hold.
_EXIF_TEXTS = frozenset((270, 271, 272, 305, 306, 33432))
_EXIF_FRACTIONS = {282: 1, 283: 1, 318: 2, 319: 6, 529: 3, 532: 6}

_TIFF_PHOTOMETRIC, _TIFF_READABLE = 262, (0, 1, 2, 3)
_TIFF_PARTS = {273: 279, 324: 325}  # offsets and sizes of strips, or of tiles
_TIFF_INTEGERS = {3: "u2", 4: "u4", 16: "u8"}


class _Damaged(Exception):
    """What the file's structure breaks, in words."""


def orientation(encoded: Encoded) -> int | str:
    """EXIF orientation, 1 to 8, of a JPEG, PNG, WebP or TIFF; 1 for other formats.

    Returns:
        The orientation, or the reason for which the file is not whole.
    """
    start = bytes(encoded[:12])
    try:
        if start.startswith(b"\xff\xd8"):
            found = _jpeg(encoded)
        elif start.startswith(b"\x89PNG\r\n\x1a\n"):
            found = _png(encoded)
        elif start.startswith(b"RIFF") and start.endswith(b"WEBP"):
            found = _webp(encoded)
        elif start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            found = _tiff(encoded)
        else:
            found = UPRIGHT
    except _Damaged as error:
        return str(error)
    return found if 1 <= found <= 8 else UPRIGHT


def _jpeg(encoded: Encoded) -> int:
    """Walk the segments up to the scan: a JPEG must have one, and an end marker after it."""
    at, size, found = 2, len(encoded), None
    while at + 4 <= size:
        if encoded[at] != 0xFF:
            raise _Damaged(f"damaged JPEG: no marker at byte {at}")
        marker = encoded[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _JPEG_STANDALONE:
            at += 2
        elif marker == 0xDA:
            if b"\xff\xd9" not in bytes(encoded[max(at, size - _JPEG_TAIL) :]) and b"\xff\xd9" not in bytes(encoded[at:]):
                raise _Damaged("truncated JPEG: no end-of-image marker")
            return found or UPRIGHT
        else:
            end = at + 2 + (encoded[at + 2] << 8 | encoded[at + 3])
            if marker == 0xE1 and found is None and encoded[at + 4 : at + 10] == b"Exif\0\0":
                found = _exif(bytes(encoded[at + 10 : end]))
            at = end
    raise _Damaged("truncated JPEG: it ends inside its header")


def _png(encoded: Encoded) -> int:
    at, size, found = 8, len(encoded), None
    while at + 12 <= size:
        kind, end = encoded[at + 4 : at + 8], at + 12 + int.from_bytes(encoded[at : at + 4], "big")
        if kind == b"IEND":
            return found or UPRIGHT
        if kind == b"eXIf":
            found = _exif(bytes(encoded[at + 8 : end - 4])) or found
        at = end
    raise _Damaged("truncated PNG: no end chunk")


def _webp(encoded: Encoded) -> int:
    size = 8 + int.from_bytes(encoded[4:8], "little")
    if size > len(encoded):
        raise _Damaged(f"truncated WebP: {len(encoded)} of {size} bytes")
    if encoded[12:16] != b"VP8X" or not encoded[20] & 8:  # the flag for EXIF
        return UPRIGHT
    at = 12
    while at + 8 <= size:
        end = at + 8 + int.from_bytes(encoded[at + 4 : at + 8], "little")
        if encoded[at : at + 4] == b"EXIF":
            return _exif(bytes(encoded[at + 8 : end])) or UPRIGHT
        at = end + (end & 1)
    raise _Damaged("damaged WebP: it announces EXIF and has none")


def _tiff(encoded: Encoded) -> int:
    """The first image: its parts must lie inside the file, and its colours must be ones that decode."""
    order: _Order = "little" if encoded[0] == 0x49 else "big"
    big = 43 in (encoded[2], encoded[3])
    count_width, width = (8, 8) if big else (2, 4)
    tags: dict[int, np.ndarray] = {}
    try:
        at = _number(encoded, 8 if big else 4, width, order)
        for i in range(_number(encoded, at, count_width, order)):
            entry = at + count_width + i * (4 + 2 * width)
            kind = _TIFF_INTEGERS.get(_number(encoded, entry + 2, 2, order))
            tag, count = _number(encoded, entry, 2, order), _number(encoded, entry + 4, width, order)
            if kind and count and tag in (_ORIENTATION, _TIFF_PHOTOMETRIC, *_TIFF_PARTS, *_TIFF_PARTS.values()):
                place = entry + 4 + width
                if count * int(kind[1]) > width:
                    place = _number(encoded, place, width, order)
                tags[tag] = np.frombuffer(encoded, (">" if order == "big" else "<") + kind, count, place)
    except ValueError:
        raise _Damaged("damaged TIFF: its directory lies outside the file") from None
    colours = tags.get(_TIFF_PHOTOMETRIC, _TIFF_READABLE)[0]
    if colours not in _TIFF_READABLE:
        raise _Damaged(f"TIFF with photometric interpretation {colours}; grey, RGB and palette can be decoded")
    for offsets, sizes in _TIFF_PARTS.items():
        if offsets in tags and sizes in tags and len(tags[offsets]) == len(tags[sizes]):
            ends = tags[offsets].astype(np.float64) + tags[sizes]
            if ends.max(initial=0) > len(encoded):
                raise _Damaged(f"truncated TIFF: {len(encoded)} of {ends.max():.0f} bytes")
            return int(tags.get(_ORIENTATION, (UPRIGHT,))[0])
    raise _Damaged("damaged TIFF: it does not say where its pixels are")


def _exif(block: bytes) -> int | None:
    """The orientation in an EXIF block, of whatever type; None where there is none, or where an entry read with it is damaged."""
    order: _Order = "little" if block[:2] == b"II" else "big"
    found = None
    try:
        if _number(block, 2, 2, order) != 42:
            return None
        at = _number(block, 4, 4, order)
        for entry in range(at + 2, at + 2 + 12 * _number(block, at, 2, order), 12):
            tag = _number(block, entry, 2, order)
            if tag == _ORIENTATION and found is None:
                found = _number(block, entry + 8, 2, order)
            elif tag in _EXIF_TEXTS and (length := _number(block, entry + 4, 4, order)) > 4:
                _number(block, _number(block, entry + 8, 4, order) + length - 1, 1, order)
            elif tag in _EXIF_FRACTIONS:
                _number(block, _number(block, entry + 8, 4, order) + 8 * _EXIF_FRACTIONS[tag] - 4, 4, order)
    except ValueError:
        return None
    return found


def _number(data: Encoded, at: int, width: int, order: _Order) -> int:
    if at + width > len(data):
        raise ValueError("outside")
    return int.from_bytes(data[at : at + width], order)
