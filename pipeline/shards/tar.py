"""Finds the members of a tar: the standard library reads the headers, bodies are skipped, and damage is always an error."""

from __future__ import annotations

import lzma
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from pipeline.errors import ShardError

BLOCK = 512
"""Headers and bodies of a tar begin at multiples of this."""

_MOST_HEADER, _MOST_READS = 2**20, 64
"""The most bytes of a long name or a pax header, and the most reads for the headers of one member: `tarfile` loads any size
that a
header gives, and recurses with each header that precedes another."""

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class TarMember(NamedTuple):
    """A file in a tar: its name as written there (never used as a path), first byte and size of its body.

    For a link, byte and size are those of its target; size -1 means that the tar does not hold the target.
    """

    name: str
    offset: int
    size: int


def walk(file: IO[bytes], shard: str, size: int | None = None) -> Iterator[TarMember]:
    """The files of an uncompressed tar (ustar, GNU, pax), in order, without reading their bodies; links to later files come last.

    A tar with only end blocks has no members. The caller may move the file's position between two members.

    Args:
        file: seekable, at its start.
        shard: URL for error messages.
        size: length of the file where known, which improves the message about a truncated one.

    Raises:
        ShardError: empty, compressed, no tar, damaged or truncated, with the byte where that shows. `tarfile` itself takes a
            damaged header in the middle for the end; here everything after the last member must be zeros.
    """
    at = 0
    links = _Links()
    try:
        start = file.read(6)
        if not start:
            raise ShardError(
                shard, "is empty: 0 bytes, as after a download or a copy that failed; fetch it again, or leave it out"
            )
        _check_not_compressed(start, shard)
        file.seek(0)
        headers: Any = _Headers(file, shard)  # what `tarfile` uses of a file
        archive = tarfile.open(fileobj=headers, mode="r:")  # noqa: SIM115 - it owns no file
        while (info := archive.next()) is not None:
            headers.reads = 0
            archive.members = []  # type: ignore[attr-defined]  # it keeps every member otherwise
            if info.size < 0 or archive.offset <= at:
                raise ShardError(shard, f"damaged header at byte {at}: it gives a negative size")
            if info.issparse():
                raise ShardError(shard, f"{info.name!r} at byte {at} is stored sparse; pack it again without --sparse")
            if size is not None and archive.offset > size:
                place = f"{_text(info.name)!r} at byte {at} goes on to byte {archive.offset}"
                raise ShardError(shard, f"truncated: {place}, and the file ends at byte {size}")
            at = archive.offset
            if info.isreg():
                yield links.file(TarMember(_text(info.name), info.offset_data, info.size))
            elif (info.islnk() or info.issym()) and (found := links.follow(info)):
                yield found
        _check_end(file, shard, archive.offset)
        yield from links.rest()
    except (tarfile.TarError, ValueError, OverflowError, EOFError, zlib.error, lzma.LZMAError) as error:
        what = "not a tar" if at == 0 else f"damaged or truncated after byte {at}"
        raise ShardError(shard, f"{what}: {error}") from None


class _Links:
    """The files of a tar by path, and the links whose targets have not come yet."""

    def __init__(self) -> None:
        self._files: dict[str, TarMember] = {}
        self._waiting: list[tuple[str, str]] = []

    def file(self, member: TarMember) -> TarMember:
        """Record a file."""
        self._files[posixpath.normpath(member.name)] = member
        return member

    def follow(self, info: tarfile.TarInfo) -> TarMember | None:
        """Resolve a link to its target; None where that has not come yet. Nothing outside the tar is ever a target."""
        name, target = _text(info.name), _text(info.linkname)
        target = posixpath.normpath(posixpath.join(posixpath.dirname(name), target) if info.issym() else target)
        found = self._files.get(target)
        if found is None:
            self._waiting.append((name, target))
            return None
        return self.file(found._replace(name=name))

    def rest(self) -> Iterator[TarMember]:
        """The links that are left, with their targets, or with size -1 where the tar does not hold these."""
        for name, target in self._waiting:
            found = self._files.get(target)
            yield TarMember(name, 0, -1) if found is None else self.file(found._replace(name=name))


class _Headers:
    """The file as `tarfile` reads it, which is headers only; a longer read than a header may need is an error."""

    def __init__(self, file: IO[bytes], shard: str) -> None:
        self._file, self._shard, self.reads = file, shard, 0
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        self.reads += 1
        if not 0 <= size <= _MOST_HEADER:
            raise ShardError(self._shard, f"damaged header before byte {self.tell()}: a name or pax header of {size} bytes")
        if self.reads > _MOST_READS:
            raise ShardError(self._shard, f"damaged header at byte {self.tell()}: too many headers before one member")
        return self._file.read(size)


def _check_not_compressed(start: bytes, shard: str) -> None:
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            raise ShardError(
                shard, f"is compressed with {name}, so that no sample can be read without those before it; unpack it first"
            )


def _check_end(file: IO[bytes], shard: str, at: int) -> None:
    file.seek(at)
    block = file.read(BLOCK)
    if len(block) < BLOCK:
        raise ShardError(shard, f"truncated: it ends at byte {at + len(block)} without an end-of-archive block")
    if block.strip(b"\0"):
        raise ShardError(shard, f"damaged header at byte {at}")
    at += BLOCK
    while rest := file.read(128 * BLOCK):
        if rest.strip(b"\0"):
            byte = at + len(rest) - len(rest.lstrip(b"\0"))
            raise ShardError(
                shard, f"data at byte {byte}, after the end-of-archive block: a damaged header, or tars joined end to end"
            )
        at += len(rest)


def _text(name: str) -> str:
    """The name as valid Unicode text; bytes that are not UTF-8 are written out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
