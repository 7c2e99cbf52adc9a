"""Watches the memory of a process and of all that it has started."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

_EVERY_SECONDS = 0.5
_PROCESSES = Path("/proc")


class PeakMemory:
    """Watches memory while the block runs.

    Counted are the private pages of each process, and shared memory, where Ray's object store lies, once. Files that are mapped
    are not: the system may drop their pages.

    Args:
        pid: of the process; this one by default.

    Attributes:
        bytes: the most that was seen; 0 where the system does not tell.
    """

    def __init__(self, pid: int | None = None) -> None:
        self.bytes = 0
        self._pid = pid or os.getpid()
        self._over = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._watching.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._watching.join()

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_SECONDS):
            found = [_memory(pid) for pid in _family(self._pid)]
            private, shared = sum(one for one, _ in found), max((other for _, other in found), default=0)
            self.bytes = max(self.bytes, private + shared)


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, list[int]] = {}
    for stat in _PROCESSES.glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def _memory(pid: int) -> tuple[int, int]:
    """Private and shared bytes of a process that are in memory."""
    with suppress(OSError):
        lines = (_PROCESSES / str(pid) / "status").read_text().splitlines()
        sizes = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith(("RssAnon", "RssShmem"))}
        return 1024 * int(sizes.get("RssAnon", 0)), 1024 * int(sizes.get("RssShmem", 0))
    return 0, 0
