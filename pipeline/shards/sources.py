"""The sources of a pack: the files of a folder tree or a tar, as relative paths with their bytes, never extracted to disk."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import IO, Any, Protocol

from pipeline.errors import ShardError, UserError
from pipeline.shards import naming, tar
from pipeline.storage import absolute, is_local, is_writable, join, open_seekable, read_all, read_range, walk

_NAMES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_DECOMPRESS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
"""Decompressors by a file's first bytes; its name is no proof, since browsers unpack some of what they load."""
_FOREIGN = {
    b"PK\x03\x04": "a zip archive: unzip it, and pack the folder",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it first (zstd -d)",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it, and pack the folder",
    b"Rar!": "a RAR archive: unpack it, and pack the folder",
}
_FIRST = 6  # bytes
_READERS, _AHEAD, _AHEAD_BYTES = 8, 32, 256 * 2**20


@dataclass(frozen=True, slots=True)
class File:
    """A file of the source.

    Args:
        path: relative to the source's root.
        size: in bytes; -1 for a link that leads nowhere, -2 for a pipe, a socket or a device.
        offset: first byte of its body, where the source is a tar.
    """

    path: str
    size: int
    offset: int = 0


class ImageSource(Protocol):
    """A source of files to pack."""

    files: list[File]
    """All of them, in the order in which they are packed: sorted by path (a compressed tar's: as they lie in it)."""
    replaced: list[str]
    """Paths of files that the tar holds again later; the last one counts."""

    def read(self, files: Sequence[File]) -> Iterator[tuple[File, bytes]]:
        """Read the bytes of some of the files, which must be in the order of `self.files`."""


def open_images(src: str) -> ImageSource:
    """Open a folder, a `.tar` or a compressed tar as a source.

    Raises:
        UserError: nothing there, or neither of these, or a tar that is damaged.
    """
    url = absolute(src)
    named = url.partition("?")[0].lower().endswith(_NAMES)
    try:
        if os.path.isdir(url) if is_local(url) else not named:
            if not is_writable(url):
                raise UserError(f"{src}: over http no folder can be listed; give a tar of it")
            return FolderSource(url)
        if is_local(url) and os.path.exists(url) and not os.path.isfile(url):  # reading a pipe would block
            raise UserError(f"{src}: {_no_source(url)}")
        start = read_range(url, 0, _FIRST)
        if foreign := next((words for magic, words in _FOREIGN.items() if start.startswith(magic)), None):
            raise UserError(f"{src} is {foreign}")
        if packed := next((unpack for magic, unpack in _DECOMPRESS.items() if start.startswith(magic)), None):
            return CompressedTarSource(url, packed)
        if not named:
            raise UserError(f"{src}: {_no_source(url)}")
        return TarSource(url)
    except FileNotFoundError:
        raise UserError(f"{src}: no such file or folder") from None
    except OSError as error:
        raise UserError(f"{src} cannot be read: {error}") from None
    except ShardError as error:
        raise UserError(str(error)) from None


def _no_source(url: str) -> str:
    if naming.is_image(url.lower().rpartition(".")[2]):
        return "this is an image; give the folder that holds it"
    return f"neither a folder nor a tar ({', '.join(_NAMES)})"


class FolderSource:
    """The files below a folder, on any storage that can be listed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.files = [File(path, size) for path, size in walk(url)]
        self.replaced: list[str] = []

    def read(self, files: Sequence[File]) -> Iterator[tuple[File, bytes]]:
        return _ahead(lambda file: read_all(join(self._url, file.path)), files)


class TarSource:
    """The files of an uncompressed tar."""

    def __init__(self, url: str) -> None:
        self._url = url
        with open_seekable(url) as file:
            files, self.replaced = _last_ones(tar.walk(file, url))
        self.files = sorted(files, key=lambda file: file.path)

    def read(self, files: Sequence[File]) -> Iterator[tuple[File, bytes]]:
        if not is_local(self._url) and all(a.offset < b.offset for a, b in pairwise(files)):
            return _in_turn(files, self._url)  # large requests, not one a file
        return _ahead(lambda file: read_range(self._url, file.offset, file.offset + file.size), files)


class CompressedTarSource:
    """The files of a compressed tar, which can only be read from its start: once for the names, once for the bytes."""

    def __init__(self, url: str, decompress: Callable[[IO[bytes]], Any]) -> None:
        self._url, self._decompress = url, decompress
        with open_seekable(url) as raw, decompress(raw) as file:
            try:
                files, self.replaced = _last_ones(tar.walk(file, url))
            except ShardError as error:
                if isinstance(error.__context__, EOFError):
                    raise ShardError(
                        url, "truncated: its end is missing, as after a download that was interrupted; load it again"
                    ) from None
                raise
        self.files = sorted(files, key=lambda file: file.offset)  # links have the offset of their target

    def read(self, files: Sequence[File]) -> Iterator[tuple[File, bytes]]:
        return _in_turn(files, self._url, self._decompress)


def _last_ones(members: Iterator[tar.TarMember]) -> tuple[list[File], list[str]]:
    """The last file of each path, and the path of each file before it."""
    files: dict[str, File] = {}
    replaced: list[str] = []
    for member in members:
        file = File(*_named(member))
        if files.pop(file.path, None) is not None:
            replaced.append(file.path)
        files[file.path] = file
    return list(files.values()), replaced


def _named(member: tar.TarMember) -> tuple[str, int, int]:
    path = "/".join(part for part in member.name.split("/") if part not in ("", "."))
    return path, member.size, member.offset


def _in_turn(
    files: Sequence[File], url: str, decompress: Callable[[IO[bytes]], Any] = nullcontext
) -> Iterator[tuple[File, bytes]]:
    """Read files that lie one after the other in a tar."""
    with open_seekable(url) as raw, decompress(raw) as tar_file:
        before, body = -1, b""
        for file in files:
            if file.offset != before:
                tar_file.seek(file.offset)
                before, body = file.offset, tar_file.read(file.size)
            yield file, body


def _ahead(read: Callable[[File], bytes], files: Sequence[File]) -> Iterator[tuple[File, bytes]]:
    """Read files in order, a few ahead of the caller; at most `_AHEAD_BYTES`, or one file, are held."""
    waiting: deque[tuple[File, Future[bytes]]] = deque()
    pool, held = ThreadPoolExecutor(_READERS), 0

    def oldest() -> tuple[File, bytes]:
        nonlocal held
        done, future = waiting.popleft()
        held -= done.size
        return done, future.result()

    try:
        for file in files:
            while waiting and (len(waiting) >= _AHEAD or held + file.size > _AHEAD_BYTES):
                yield oldest()
            held += file.size
            waiting.append((file, pool.submit(read, file)))
        while waiting:
            yield oldest()
    finally:
        pool.shutdown(cancel_futures=True)
