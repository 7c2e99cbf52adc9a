"""Writes tars whose bytes depend on their content and on nothing else."""

from __future__ import annotations

import hashlib
import tarfile
from typing import IO

from pipeline.shards.tar import BLOCK

_RECORD = 20 * BLOCK  # tars are padded to this


class TarWriter:
    """Writes a tar to a file; keeps the hash of its bytes and its length so far."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.position = 0

    def add(self, name: str, body: bytes | memoryview) -> int:
        """Append a member; returns the first byte of its body."""
        self._write(header(name, len(body)))
        start = self.position
        self._write(body)
        self._write(bytes(padded(len(body)) - len(body)))
        return start

    def finish(self) -> None:
        """Write the end of the archive."""
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self.position % _RECORD))

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self.sha256.update(data)
        self.position += len(data)


def header(name: str, size: int) -> bytes:
    """The header of a member; owner, times and mode are constants."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def padded(size: int) -> int:
    """The bytes that a body of this size takes in a tar."""
    return -(-size // BLOCK) * BLOCK
