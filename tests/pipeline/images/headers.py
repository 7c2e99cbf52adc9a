"""What the header check says of a file, and files made by hand: EXIF blocks, chunks and TIFFs."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import PngImagePlugin

from pipeline.images.check import Header, check_header
from tests.pipeline.made_images import HEIGHT, WIDTH, encode, good, photo

ANY = 10**8


def header(encoded: bytes) -> Header:
    found = check_header(encoded, ANY)
    assert isinstance(found, Header), found
    return found


def refusal(encoded: bytes, max_pixels: int = ANY) -> str:
    found = check_header(encoded, max_pixels)
    assert isinstance(found, str)
    return found


def exif(*entries: tuple[int, int, int, bytes], order: str = "<", tail: bytes = b"", mark: int = 42) -> bytes:
    """An EXIF block: entries of (tag, type, count, four bytes of value)."""
    block = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", mark, 8, len(entries))
    for tag, kind, count, value in entries:
        block += struct.pack(f"{order}HHI", tag, kind, count) + value
    return block + bytes(4) + tail


def segment(body: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def chunk(kind: bytes, body: bytes) -> bytes:
    buffer = io.BytesIO()
    PngImagePlugin.putchunk(buffer, kind, body)
    return buffer.getvalue()


def with_exif(block: bytes) -> bytes:
    """The photo as a JPEG with this EXIF block."""
    return good()["jpeg"][:2] + segment(b"Exif\0\0" + block) + good()["jpeg"][2:]


def webp_with(block: bytes) -> bytes:
    """The photo with an EXIF chunk after the pixels, in WebP's extended layout."""
    pixels = encode(photo(), "WEBP")[12:]
    size = (WIDTH - 1).to_bytes(3, "little") + (HEIGHT - 1).to_bytes(3, "little")
    extended = b"VP8X" + struct.pack("<IB3x", 10, 8) + size
    meta = b"EXIF" + struct.pack("<I", len(block)) + block + bytes(len(block) % 2)
    body = b"WEBP" + extended + pixels + meta
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(pixels: np.ndarray, order: str, big: bool, orientation: int, cut: int = 0) -> bytes:
    """An uncompressed RGB TIFF of one strip."""
    height, width, _ = pixels.shape
    entries = [(256, width), (257, height), (258, (8, 8, 8)), (259, 1), (262, 2), (273, None), (274, orientation)]
    entries += [(277, 3), (278, height), (279, pixels.size)]
    count_form, entry_form, room = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    start = 16 if big else 8
    after = start + struct.calcsize(f"={count_form}") + len(entries) * (4 + 2 * room) + room
    directory = struct.pack(f"{order}{count_form}", len(entries))
    for tag, value in entries:
        if isinstance(value, tuple):
            inside = struct.pack(f"{order}3H", *value)
            place = inside.ljust(8, b"\0") if big else struct.pack(f"{order}I", after)
            directory += struct.pack(f"{order}{entry_form}", tag, 3, 3) + place
        else:
            number = after + 6 if value is None else value
            directory += struct.pack(f"{order}{entry_form}{'Q' if big else 'I'}", tag, 16 if big else 4, 1, number)
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(
        f"{order}HHHQ" if big else f"{order}HI", *((43, 8, 0, 16) if big else (42, 8))
    )
    body = head + directory + bytes(room) + struct.pack(f"{order}3H", 8, 8, 8) + pixels.tobytes()
    return body[: len(body) - cut]
