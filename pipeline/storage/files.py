"""Reads, walks, removes and writes files on any storage; a file is written whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import io
import logging
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from pipeline.storage.backends import (
    HTTP,
    OBJECT_STORES,
    absolute,
    as_oserror,
    backend,
    changed_in,
    is_local,
    is_transient,
    is_writable,
    scheme_of,
    size_in,
)
from pipeline.storage.traffic import count_bytes

ATTEMPTS = 5
TEMPORARY = ".tmp"
"""The suffix of files that are still being written."""

_READ_AHEAD = 8 * 2**20
_UPLOAD_PART = 16 * 2**20  # what an open upload holds in memory; 10,000 of them, S3's limit, are 156 GiB

log = logging.getLogger(__name__)


def pause(attempt: int) -> None:
    """Wait before trying again: twice as long after each attempt, with jitter, so that workers do not all try at once."""
    time.sleep(0.2 * 2**attempt * (0.5 + secrets.randbelow(1024) / 1024))


def exists(url: str) -> bool:
    """Whether a file or folder is there.

    Raises:
        UserError: unknown scheme.
        OSError: the storage did not answer.
    """
    fs, path = backend(url)
    with as_oserror(url):
        try:
            fs.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True


def size(url: str) -> int:
    """Size of a file in bytes; FileNotFoundError where there is none."""
    fs, path = backend(url)
    with as_oserror(url):
        return size_in(fs.info(path), url)


def changed(url: str) -> float | None:
    """The time of a file's last change, seconds since 1970 by its storage's clock; None where it is not known."""
    fs, path = backend(url)
    with as_oserror(url):
        try:
            return changed_in({} if is_local(url) else fs.info(path), url)
        except (FileNotFoundError, NotADirectoryError):
            return None


def make_folder(url: str) -> None:
    """Make a folder and those above it; object stores have none and need none."""
    if is_local(url):
        os.makedirs(absolute(url), exist_ok=True)


def check_writable(folder: str) -> None:
    """Check that files can be written to a folder, which need not exist, and removed from it; leaves nothing behind.

    Raises:
        UserError: unknown scheme.
        OSError: they cannot; says why.
    """
    if not is_writable(folder):
        raise PermissionError(f"{folder}: http storage cannot be written")
    if is_local(folder):
        there = Path(absolute(folder))
        while not there.exists():
            there = there.parent
        if not there.is_dir():
            raise NotADirectoryError(f"{there} is a file")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(f"{there}: access denied, or a read-only file system")
        return
    probe = f"{folder.rstrip('/')}/.probe{TEMPORARY}"
    with write_atomic(probe) as file:
        file.write(b"may this be written?")
    remove(probe)


def remove(url: str) -> None:
    """Delete a file, if it is there."""
    fs, path = backend(url)
    with as_oserror(url):
        try:
            fs.rm_file(path)
        except FileNotFoundError:
            return


def walk(folder: str) -> list[tuple[str, int]]:
    """All files below a folder: (path relative to it, with `/`; size in bytes), sorted by path.

    Links are followed, and loops are cut. A link that leads nowhere has size -1; a pipe, a socket or a device has -2.

    Raises:
        OSError: there is no such folder, or a folder below it cannot be read.
    """
    if not is_local(folder):
        fs, root = backend(folder)
        with as_oserror(folder):
            found = fs.find(root, detail=True)
        prefix = root.rstrip("/") + "/"
        return sorted((path.removeprefix(prefix), int(info["size"])) for path, info in found.items())
    files: list[tuple[str, int]] = []
    waiting: list[tuple[str, str, frozenset[tuple[int, int]]]] = [(absolute(folder), "", frozenset())]
    while waiting:
        place, relative, above = waiting.pop()
        status = os.stat(place)
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting.append((entry.path, f"{relative}{entry.name}/", above | {identity}))
                elif entry.is_file():
                    files.append((relative + entry.name, entry.stat().st_size))
                else:
                    files.append((relative + entry.name, -2 if os.path.exists(entry.path) else -1))
    return sorted(files)


def read_all(url: str) -> bytes:
    """The whole file; errors as in `read_ranges`."""
    return read_ranges(url, [(0, None)])[0]


def read_range(url: str, start: int, end: int) -> bytes:
    """Bytes [start, end) of a file, fewer where it ends before; errors as in `read_ranges`."""
    return read_ranges(url, [(start, end)])[0]


def read_ranges(url: str, ranges: Sequence[tuple[int, int | None]]) -> list[bytes]:
    """Several ranges of one file; on remote storage they are fetched at the same time, and transient errors are retried.

    Args:
        url: the file.
        ranges: first byte, and the byte after the last one (None: to the end of the file).

    Raises:
        FileNotFoundError, PermissionError, OSError: with the URL and what is wrong.
    """
    if is_local(url):
        with open(absolute(url), "rb") as file:
            return count_bytes([_read_local(file, start, end) for start, end in ranges])
    fs, path = backend(url)
    wanted = dict(enumerate(ranges))
    got: dict[int, bytes] = {}
    for attempt in range(ATTEMPTS):
        with as_oserror(url):
            starts = [
                None if (start, end) == (0, None) else start for start, end in wanted.values()
            ]  # an empty file has no range
            ends = [end for _, end in wanted.values()]
            answers = fs.cat_ranges([path] * len(wanted), starts, ends, on_error="return")
            for index, answer in zip(list(wanted), answers):
                if isinstance(answer, bytes):
                    start, end = wanted.pop(index)
                    # a server that ignores ranges (Python's http.server) answers with the whole file
                    got[index] = answer if end is None or len(answer) <= end - start else answer[start:end]
                elif attempt == ATTEMPTS - 1 or not is_transient(answer):
                    raise answer
        if not wanted:
            break
        pause(attempt)
    return count_bytes([got[index] for index in range(len(ranges))])


@contextmanager
def open_seekable(url: str) -> Iterator[IO[bytes]]:
    """A file to read from and to seek in, read ahead in large blocks on remote storage; errors as in `read_ranges`."""
    if is_local(url):
        with open(absolute(url), "rb") as file:
            yield file
    elif scheme_of(url) in HTTP and (whole := _unless_ranges(url)) is not None:
        yield io.BytesIO(whole)
    else:
        with io.BufferedReader(_Remote(url), _READ_AHEAD) as buffered:
            yield buffered


@contextmanager
def write_atomic(url: str) -> Iterator[IO[bytes]]:
    """A file to write to, which appears under its name only when the block ends without an exception.

    Locally: a temporary name in the same folder, locked while its writer lives; fsync, rename, fsync of the folder. Object
    stores: one put, or a multipart upload that is completed at the end and aborted on an exception. Elsewhere: a temporary
    name, then a move.

    Raises:
        OSError: storage is read-only, full or refuses.
    """
    if not is_writable(url):
        raise PermissionError(f"{url}: http storage cannot be written")
    if is_local(url):
        with _write_local(Path(absolute(url))) as local:
            yield local
        return
    fs, path = backend(url)
    with as_oserror(url):
        if scheme_of(url) in OBJECT_STORES:
            file = fs.open(path, "wb", block_size=_UPLOAD_PART)
            try:
                yield file
                file.close()
            except BaseException:
                _abort_upload(file, url)
                raise
        else:
            folder, _, name = path.rpartition("/")
            temporary = f"{folder}/.{name}.{secrets.token_hex(4)}{TEMPORARY}"
            try:
                with fs.open(temporary, "wb") as file:
                    yield file
                fs.mv(temporary, path)
            except BaseException:
                if fs.exists(temporary):
                    fs.rm_file(temporary)
                raise


def _abort_upload(file: Any, url: str) -> None:
    """Abort an upload that is half done; if that fails, it is only logged, as the error that stopped the upload matters more."""
    file.closed = True  # else the garbage collector closes it, which would upload what there is
    try:
        with as_oserror(url):
            file.discard()
    except OSError as error:
        log.warning("an unfinished upload could not be aborted: %s", error)


@contextmanager
def _write_local(path: Path) -> Iterator[IO[bytes]]:
    temporary, file = _begin(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)  # the rename itself must survive a power cut
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _begin(path: Path) -> tuple[Path, BinaryIO]:
    """A new temporary file beside `path`, locked so that `discard_if_dead` can tell that its writer lives."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
        file = temporary.open("xb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            return temporary, file
        if os.fstat(file.fileno()).st_nlink:
            return temporary, file
        file.close()  # another process removed it between the two calls, taking its writer for dead


def discard_if_dead(path: Path) -> bool:
    """Remove a temporary file of `write_atomic` on this machine's file systems, unless its writer lives.

    Returns:
        False where the file system has no locks, so that this cannot be known.
    """
    try:
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        return False
    return True


def _read_local(file: IO[bytes], start: int, end: int | None) -> bytes:
    file.seek(start)
    return file.read() if end is None else file.read(max(0, end - start))


class _Remote(io.RawIOBase):
    """A remote file with the interface of `io.RawIOBase`; each read is a range request, which is retried."""

    def __init__(self, url: str) -> None:
        self._url, self._size, self._at = url, size(url), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._size, self._at + len(buffer))
        if end <= self._at:
            return 0
        got = read_range(self._url, self._at, end)
        buffer[: len(got)] = got
        self._at += len(got)
        return len(got)


def _unless_ranges(url: str) -> bytes | None:
    """The whole file where the server ignores ranges, so that it is fetched once and not once a range; else None."""
    fs, path = backend(url)
    with as_oserror(url):
        if size_in(fs.info(path), url) == 0:
            return b""
        start: bytes = fs.cat_file(path, start=0, end=1)
    return start if len(start) > 1 else None
