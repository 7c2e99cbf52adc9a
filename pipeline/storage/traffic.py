"""Counts the bytes that this process reads from storage, for the metrics."""

from __future__ import annotations

import threading

_lock = threading.Lock()
_read = 0


def count_bytes(parts: list[bytes]) -> list[bytes]:
    """Add the length of what was read to the count, and return it."""
    global _read
    with _lock:
        _read += sum(map(len, parts))
    return parts


def bytes_read() -> int:
    """Bytes that this process has read since it started, by `read_ranges` and everything that uses it."""
    return _read
