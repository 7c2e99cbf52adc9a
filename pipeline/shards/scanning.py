"""Makes the index of a shard by scanning its headers, or loads the one beside it where that fits the shard."""

from __future__ import annotations

import hashlib
import logging
import re
import tarfile
from collections.abc import Iterator
from itertools import groupby
from typing import IO, Any

import numpy as np

from pipeline.errors import ShardError
from pipeline.shards import naming, tar
from pipeline.shards.members import DamagedIndex, Member, MemberRows, Members, parts_of, sidecar
from pipeline.storage import changed, is_writable, open_seekable, read_ranges
from pipeline.storage import size as size_of

LABEL = 64
"""Bytes of a `cls` member that are read."""

_BEGINNING = 4096  # bytes of a member's body that go into the digest; reading the header brings them along
_INTEGER = re.compile(r"([+-]?[0-9]{1,10})(?:\.0*)?")

log = logging.getLogger(__name__)


def scan(url: str, prefer: str | None = None) -> Members:
    """Make a shard's index from its headers and labels; the first bytes of every member are read for its digest.

    Args:
        url: the shard.
        prefer: extension of the image to take where a sample has several; None takes the first.

    Raises:
        ShardError: the shard is missing, cannot be read, or is damaged.
    """
    try:
        length = size_of(url)
        with open_seekable(url) as file:
            digest = hashlib.blake2b(digest_size=32)
            rows = _samples(file, url, length, digest)
            members = Members(rows.table(), length, digest.hexdigest(), rows.unread, rows.text)
    except OSError as error:
        raise ShardError(url, f"cannot be read: {str(error).removeprefix(url + ': ')}") from None
    return members.preferring(prefer) if prefer else members


def load_or_scan(
    url: str,
    shard_bytes: int,
    prefer: str | None = None,
    samples: int | None = None,
    since: float | None = None,
    beside: str | None = None,
) -> tuple[Members, bool]:
    """Load a shard's members from the file beside it where that fits the shard; otherwise scan the shard.

    Args:
        url: the shard.
        shard_bytes: its size.
        prefer: as for `scan`, whose errors it raises.
        samples: how many samples the folder's index gives for the shard, where that is known.
        since: when the shard was last changed, if known; an older file beside it is ignored.
        beside: URL of that file; None takes `sidecar`.

    Returns:
        The members, and whether the shard was scanned.
    """
    beside = beside or sidecar(url)
    try:
        fits = beside and (since is None or (changed(beside) or since) >= since)
        members = Members.load(beside) if beside and fits else None
        if members is not None and members.shard_bytes == shard_bytes and samples not in (None, len(members)):
            raise DamagedIndex(f"{beside}: damaged: it holds {len(members)} samples, {samples} by the index")
    except DamagedIndex as error:
        members = scan(url)
        _make_again(members, beside or "", error)
        return (members.preferring(prefer) if prefer else members), True
    except (OSError, ValueError):  # missing or of another version: scanning gives the same
        members = None
    if members is None or members.shard_bytes != shard_bytes:
        return scan(url, prefer), True
    return members.preferring(prefer) if prefer else members, False


def _make_again(members: Members, url: str, error: DamagedIndex) -> None:
    try:
        if not is_writable(url):
            raise PermissionError("http storage cannot be written")
        members.save(url)
        log.warning("%s; it was made again from the shard", error)
    except OSError as refused:
        log.warning("%s; the shard itself is read, for it cannot be made again: %s", error, refused)


def at_hand(url: str) -> Members | None:
    """A shard's members from the file beside it, however old that is; None where it is missing or cannot be used."""
    beside = sidecar(url)
    try:
        return Members.load(beside) if beside else None
    except (OSError, ValueError):
        return None


def agrees(url: str, members: Members) -> bool:
    """Whether a shard's first and last sample have the headers and labels that a table gives; only these parts are read.

    Raises:
        OSError: the shard cannot be read.
    """
    ends = members.take(np.unique([0, len(members) - 1])) if len(members) else members
    for row in ends.table.to_pylist():
        parts = parts_of(row)
        ranges = [(part.offset - tar.BLOCK, part.offset + (min(part.size, LABEL) if part.ext == "cls" else 0)) for part in parts]
        for part, found in zip(parts, read_ranges(url, ranges)):
            if not _is_header(found[: tar.BLOCK], f"{row['key']}.{part.ext}", part.size):
                return False
            if part.ext == "cls" and read_label(found[tar.BLOCK :])[0] != row["label"]:
                return False
    return True


def _is_header(block: bytes, name: str, size: int) -> bool:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    plain = name.isascii() and len(name) < 100  # other names are in an extra header before this one
    return info.size == size and (not plain or naming.plain(info.name).lower() == name.lower())


def _samples(file: IO[bytes], url: str, length: int, digest: Any) -> MemberRows:
    rows = MemberRows()
    seen: set[str] = set()
    for key, group in groupby(_parts(file, url, length, digest), key=lambda entry: entry[0]):
        parts: list[Member] = []
        label: int | None = None
        problem = (
            "a sample of this key came before in the shard (members of one sample must be adjacent)" if key in seen else None
        )
        seen.add(key)
        for _, part in group:
            if part.size < 0:
                problem = problem or f"its {part.ext} is a link to a file that the shard does not hold"
                continue
            if any(part.ext == other.ext for other in parts):
                problem = problem or f"two members with extension {part.ext}"
            parts.append(part)
            if part.ext == "cls":
                file.seek(part.offset)
                label, wrong = read_label(file.read(min(part.size, LABEL)))
                if wrong:
                    rows.unread, rows.text = rows.unread + 1, rows.text or f"{key} ({wrong})"
        rows.add(key, parts, label, problem)
    return rows


def _parts(file: IO[bytes], url: str, length: int, digest: Any) -> Iterator[tuple[str, Member]]:
    for name, offset, size in tar.walk(file, url, length):
        file.seek(offset)
        digest.update(f"{name}\0{offset}\0{size}\0".encode())
        digest.update(file.read(min(max(size, 0), _BEGINNING)))
        if (named := naming.split(naming.plain(name))) is not None:
            yield named[0], Member(named[1], offset, size)


def read_label(text: bytes) -> tuple[int | None, str | None]:
    """Read the class from a `cls` member: an integer, which may stand in quotes or white space; -1 means that there is none.

    Returns:
        The class or None, and the member's content where that is no class number.
    """
    shown = text.decode("utf-8-sig", "backslashreplace").strip("\0 \t\r\n")
    match = _INTEGER.fullmatch(shown.strip("\"'").strip())
    value = int(match[1]) if match else -2
    if not -1 <= value < 2**31:
        return None, ascii(shown[:20])
    return (None if value == -1 else value), None
