"""Files on local disk that name the work in progress; those of a killed process tell what it worked on."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

KEPT = 7 * 24 * 3600
"""Seconds for which a death is remembered."""


class InFlight:
    """One file for each piece of work in progress; a process that is killed leaves its file behind, unlocked.

    Any number of processes may share a folder. The operating system releases a dead process's lock, so a live process is never
    taken for a dead one, not even where two runs of one recipe work on the same piece at once.

    Args:
        folder: folder of the files, on a local disk; made if it is not there.
        run: name of the run that this process works for: one word.
    """

    def __init__(self, folder: Path, run: str) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._run = folder, run

    @contextmanager
    def at(self, name: str) -> Iterator[None]:
        """Keep the file of the piece `name` while the block works on it."""
        path = self._folder / name
        file = _claim(path)
        if file is None:  # another live process works on it
            yield
            return
        with file:
            file.write(f"{self._run}\n".encode())
            file.flush()
            try:
                yield
            finally:  # an exception is not a crash, and is reported where it is raised
                path.unlink(missing_ok=True)

    def deaths(self, name: str) -> tuple[int, int]:
        """Count the processes that were killed at the piece `name`: those of this run, and those of all runs.

        Both are 0 while a live process works on it, and where the last death is longer ago than `KEPT`.
        """
        path = self._folder / name
        if not path.exists():
            return 0, 0
        file = _claim(path)
        if file is None:
            return 0, 0
        with file:
            file.seek(0)
            runs = file.read().decode(errors="replace").split()
            if not runs or is_old(path):  # its owner finished, and removed it, just before it was claimed
                path.unlink(missing_ok=True)
                return 0, 0
        return runs.count(self._run), len(runs)


def is_old(path: Path) -> bool:
    """Whether a file of this folder was last written longer ago than `KEPT`."""
    return time.time() - path.stat().st_mtime > KEPT


def _claim(path: Path) -> BinaryIO | None:
    """Open and lock the file; None if another process holds it."""
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            pass
        file.close()  # its owner finished, and removed it, between our opening and our locking
