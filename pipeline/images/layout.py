"""Reads the structure of image files, but no pixels: whether a file is whole, its EXIF orientation, the kind of a TIFF."""

from __future__ import annotations

from typing import Literal

import numpy as np

Encoded = bytes | memoryview
_Order = Literal["little", "big"]

UPRIGHT = 1
_ORIENTATION = 274

_JPEG_STANDALONE = frozenset((0x01, *range(0xD0, 0xD9)))
_JPEG_TAIL = 4096

_ANIMATION = frozenset((b"acTL", b"fcTL", b"fdAT"))

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _FORMAT = 258, 259, 262, 277, 284, 339
_COLOURS = {1: ((1,), (8, 16)), 2: ((3, 4), (8, 16)), 3: ((1,), (8,))}  # samples of a pixel, and bits of each: grey, RGB, palette
_COMPRESSIONS = (1, 5, 7, 8, 32773, 32946)  # none, LZW, JPEG, deflate, PackBits, deflate
_PARTS = {273: 279, 324: 325}  # offsets and sizes of strips, or of tiles
_WANTED = frozenset((_ORIENTATION, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _FORMAT, *_PARTS, *_PARTS.values()))
_INTEGERS = {3: "u2", 4: "u4", 16: "u8"}


class _Damaged(Exception):
    """The structure of the file is broken; the message says how."""


def orientation(encoded: Encoded) -> int | str:
    """EXIF orientation, 1 to 8, of a JPEG, PNG, WebP or TIFF; 1 for other formats.

    Returns:
        The orientation, or the reason why the file counts as damaged.
    """
    start = bytes(encoded[:12])
    try:
        if start.startswith(b"\xff\xd8"):
            found = _jpeg(encoded)
        elif start.startswith(b"\x89PNG\r\n\x1a\n"):
            found = _png(encoded)
        elif start.startswith(b"RIFF") and start.endswith(b"WEBP"):
            found = _webp(encoded)
        elif start[:4] in TIFF_STARTS:
            found = _tiff(encoded)
        else:
            found = UPRIGHT
    except _Damaged as error:
        return str(error)
    return found if 1 <= found <= 8 else UPRIGHT


def without_animation(encoded: Encoded) -> Encoded:
    """Remove the animation from an animated PNG, which leaves its default image; any other file is returned as it is.

    Decoders that play the animation crash on damaged frames, or show uninitialised memory; PIL and old browsers show the default
    image.

    Args:
        encoded: a file whose structure `orientation` found whole.
    """
    if bytes(encoded[:8]) != b"\x89PNG\r\n\x1a\n":
        return encoded
    at, animated = 8, False
    kept = [encoded[:8]]
    while at + 12 <= len(encoded):
        kind, end = bytes(encoded[at + 4 : at + 8]), at + 12 + int.from_bytes(encoded[at : at + 4], "big")
        if kind in _ANIMATION:
            animated = True
        else:
            kept.append(encoded[at:end])
        if kind == b"IEND":
            break
        at = end
    return b"".join(kept) if animated else encoded


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
    if size <= 20 or encoded[12:16] != b"VP8X" or not encoded[20] & 8:  # the flag for EXIF
        return UPRIGHT
    at = 12
    while at + 8 <= size:
        end = at + 8 + int.from_bytes(encoded[at + 4 : at + 8], "little")
        if encoded[at : at + 4] == b"EXIF":
            return _exif(bytes(encoded[at + 8 : end]).removeprefix(b"Exif\0\0")) or UPRIGHT
        at = end + (end & 1)
    raise _Damaged("damaged WebP: it announces EXIF and has none")


def _tiff(encoded: Encoded) -> int:
    """The orientation of the first image, whose parts must lie inside the file."""
    try:
        tags = _tags(encoded)
    except ValueError:
        raise _Damaged("damaged TIFF: its directory lies outside the file") from None
    for offsets, sizes in _PARTS.items():
        if offsets in tags and sizes in tags and len(tags[offsets]) == len(tags[sizes]):
            end = (tags[offsets].astype(np.float64) + tags[sizes]).max()
            if end > len(encoded):
                raise _Damaged(f"truncated TIFF: {len(encoded)} of {end:.0f} bytes")
            return int(tags.get(_ORIENTATION, (UPRIGHT,))[0])
    raise _Damaged("damaged TIFF: it does not say where its pixels are")


def is_usual_tiff(encoded: Encoded) -> bool:
    """Whether all decoders show the first image of a TIFF alike; some show other kinds as negatives, or turn them twice.

    Args:
        encoded: a file whose structure `orientation` found whole.
    """
    colours, samples, bits, compression, planar, form = _kind(encoded)
    of_a_pixel, of_a_sample = _COLOURS.get(colours, ((), ()))
    known = samples in of_a_pixel and bits in of_a_sample and compression in _COMPRESSIONS
    return known and (planar, form) == (1, 1)


def describe_tiff(encoded: Encoded) -> str:
    """Describe the first image of a TIFF, whose structure must be whole, by the numbers of its directory."""
    colours, samples, bits, compression, planar, _ = _kind(encoded)
    what = f"TIFF with photometric interpretation {colours}, {samples} samples a pixel of {bits} bits"
    return f"{what}, compression {compression}, planar configuration {planar}"


def _kind(encoded: Encoded) -> tuple[int, ...]:
    """Photometric interpretation, samples a pixel, bits (0 where samples differ in them), compression, planes, sample format."""
    tags = _tags(encoded)
    defaults = ((_PHOTOMETRIC, 2), (_SAMPLES, 1), (_BITS, 1), (_COMPRESSION, 1), (_PLANAR, 1), (_FORMAT, 1))
    found = {tag: int(tags.get(tag, (default,))[0]) for tag, default in defaults}
    if _BITS in tags and tags[_BITS].min() != tags[_BITS].max():
        found[_BITS] = 0
    return tuple(found.values())


def _exif(block: bytes) -> int | None:
    """The orientation in an EXIF block, which is a TIFF without an image; None where it cannot be found."""
    try:
        found = _tags(block).get(_ORIENTATION) if block[:4] in TIFF_STARTS else None
    except ValueError:
        return None
    return None if found is None else int(found[0])


def _tags(data: Encoded) -> dict[int, np.ndarray]:
    """The integers in a TIFF's first directory that matter here, by tag; classic TIFF and BigTIFF.

    Raises:
        ValueError: the directory, or something it points to, lies outside the data.
    """
    order: _Order = "little" if data[0] == 0x49 else "big"
    width, count_width, at = (8, 8, 8) if 43 in (data[2], data[3]) else (4, 2, 4)
    tags: dict[int, np.ndarray] = {}
    at = _number(data, at, width, order)
    end = at + count_width + _number(data, at, count_width, order) * (4 + 2 * width)
    if end > len(data):
        raise ValueError("outside")
    for entry in range(at + count_width, end, 4 + 2 * width):
        tag, count = _number(data, entry, 2, order), _number(data, entry + 4, width, order)
        kind = _INTEGERS.get(_number(data, entry + 2, 2, order))
        if tag in _WANTED and tag not in tags and kind and count:
            place = entry + 4 + width
            if count * int(kind[1]) > width:
                place = _number(data, place, width, order)
            if place + count * int(kind[1]) > len(data):  # checked first: numpy fails on numbers that no C integer holds
                raise ValueError("outside")
            tags[tag] = np.frombuffer(data, (">" if order == "big" else "<") + kind, count, place)
    return tags


def _number(data: Encoded, at: int, width: int, order: _Order) -> int:
    if at + width > len(data):
        raise ValueError("outside")
    return int.from_bytes(data[at : at + width], order)
