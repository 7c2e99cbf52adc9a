"""Decides which counts in a folder's index are still valid, and indexes again the shards that were changed since."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import file_digest

import numpy as np

from pipeline.errors import UserError
from pipeline.shards.index import NAME, UNFINISHED, DamagedRows, Index, Lookup, Row, renew
from pipeline.shards.members import Members, sidecar, sidecar_in
from pipeline.shards.scanning import agrees, at_hand, load_or_scan, scan
from pipeline.storage import (
    Listed,
    changed,
    exists,
    is_local,
    is_writable,
    join,
    make_folder,
    open_seekable,
    unsigned,
    without_secrets,
)

_COPIED_FROM = 16
"""A folder of more shards than this, all newer than its index, was copied: the first and last sample of each are compared."""

log = logging.getLogger(__name__)


@dataclass
class FolderIndex:
    """What the index of a folder says of the wanted shards, and what is to be written to it."""

    url: str
    place: str
    """URL at which the index may be written: the folder itself, or a subfolder of `corpus.index`."""
    counts: np.ndarray
    """int64 of shape (shards,): samples of each wanted shard, -1 where the index does not give them."""
    classes: list[str] | None = None
    numbers: list[int] | None = None
    writable: bool = True
    newer: dict[str, Row] = field(default_factory=dict)
    """Rows of shards that were changed after the index was written."""
    copied: bool = False
    """Whether all shards are newer because the folder was copied."""
    new: dict[str, Row] = field(default_factory=dict)
    """Rows of shards that were scanned."""
    elsewhere: dict[str, str] = field(default_factory=dict)
    """Digests of shards that only the index at `place` describes."""
    lost: set[str] = field(default_factory=set)
    """Newer shards that are damaged; the index must not describe them."""

    def save(self) -> None:
        """Write the index with the new rows.

        Raises:
            OSError: it cannot be written.
        """
        if not self.new and not self.lost:
            renew(self.place)
            return
        try:
            index = Index.load(self.place)
        except (FileNotFoundError, DamagedRows):
            index = Index(classes=self.classes, numbers=self.numbers)
        index.rows = {name: row for name, row in (index.rows | self.new).items() if name not in self.lost}
        make_folder(self.place)
        index.save(self.place)

    def write(self, members: Members, shard: Listed) -> bool:
        """Write a shard's members; returns whether their file lies beside the shard now."""
        beside = self.place == self.url
        target = sidecar(shard.url) if beside else join(self.place, f"{name_of(shard).removesuffix('.tar')}.members.parquet")

        def save() -> None:
            make_folder(self.place)
            members.save(target or "")

        return write_or_warn(self, save) and beside


def open_folder(url: str, listed: list[Listed], may_write: bool, index_in: str | None) -> FolderIndex:
    """Read the index of a folder of shards.

    Args:
        url: the folder.
        listed: the wanted shards of it, at least one.
        may_write: whether an index may be written.
        index_in: folder for indices; None writes the index beside the shards.

    Raises:
        UserError: the folder holds an unfinished pack, or storage fails.
    """
    shards, sizes = [shard.url for shard in listed], np.array([shard.size for shard in listed], np.int64)
    place = ((index_in and sidecar_in(index_in, shards[0])) or f"{url}/").rpartition("/")[0]
    folder = FolderIndex(url, place, np.full(len(shards), -1, np.int64), writable=may_write and is_writable(place))
    if is_signed(url):  # no signature is known for files beside its shards
        _look_elsewhere(folder, listed)
        return folder
    try:
        lookup = Lookup.load(url)
        folder.classes, folder.numbers = lookup.classes, lookup.numbers
        for n, samples in lookup.find("samples", shards, sizes):
            folder.counts[n] = samples
        _distrust(folder, lookup, listed)
    except (FileNotFoundError, PermissionError):
        if is_writable(url) and exists(join(url, UNFINISHED)):
            raise UserError(f"{url}: holds an unfinished pack; run the same `pseudolabel pack` again to complete it") from None
    except DamagedRows as error:
        log.warning("%s; it is made again from the shards", error)
        folder.counts[:] = -1
    except ValueError as error:
        log.warning("%s; it is left alone, and the shards are scanned", error)
        folder.writable = False
    except OSError as error:
        raise UserError(f"the index of the shards cannot be read: {error}") from None
    if folder.place != url:
        _look_elsewhere(folder, listed)
    return folder


def _look_elsewhere(folder: FolderIndex, listed: list[Listed]) -> None:
    """Take counts that the folder's own index lacks from the index at `folder.place`."""
    try:
        lookup = replace(Lookup.load(folder.place), folder=folder.url)
        written = changed(join(folder.place, NAME))
        wanted = [
            n
            for n, shard in enumerate(listed)
            if folder.counts[n] < 0 and (written is None or (shard.changed or written) <= written)
        ]
        shards = [f"{folder.url}/{name_of(listed[n])}" for n in wanted]
        sizes = np.array([listed[n].size for n in wanted], np.int64)
        digests = dict(lookup.find("digest", shards, sizes))
        for k, samples in lookup.find("samples", shards, sizes):
            name = name_of(listed[wanted[k]])
            folder.counts[wanted[k]], folder.elsewhere[name] = samples, digests.get(k) or ""
            folder.newer.pop(name, None)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        log.warning("%s; it is made again", error)


def _distrust(folder: FolderIndex, lookup: Lookup, listed: list[Listed]) -> None:
    """Remove the counts of empty files, which are no shards, and of newer shards: a rewritten tar may keep its size."""
    folder.counts[[n for n, shard in enumerate(listed) if shard.size == 0]] = -1
    written, known = changed(join(folder.url, NAME)), np.flatnonzero(folder.counts >= 0).tolist()
    newer = [n for n in known if written is not None and (listed[n].changed or written) > written]
    if not newer:
        return
    shards, sizes = [listed[n].url for n in newer], np.array([listed[n].size for n in newer], np.int64)
    found = {column: dict(lookup.find(column, shards, sizes)) for column in ("sha256", "digest")}
    for place, n in enumerate(newer):
        sums = {column: values.get(place) for column, values in found.items()}
        folder.newer[name_of(listed[n])] = Row(int(folder.counts[n]), listed[n].size, **sums)
    folder.copied = len(newer) == len(known) > _COPIED_FROM
    folder.counts[newer] = -1


def describe(shard: Listed, folder: FolderIndex | None) -> tuple[Row, bool, Members | None]:
    """Describe a shard whose count no index gives, or whose index is older than the shard.

    Returns:
        Its row of the index; whether a file beside it, or the index, describes it now; and its members where it was scanned.

    Raises:
        ShardError: the shard is damaged.
        OSError: it cannot be read.
    """
    return _newer(shard, folder) if folder and name_of(shard) in folder.newer else _unknown(shard, folder)


def _unknown(shard: Listed, folder: FolderIndex | None) -> tuple[Row, bool, Members | None]:
    """Describe a shard that no index describes; returns as `describe`."""
    members, scanned = load_or_scan(shard.url, shard.size, since=shard.changed)
    row = Row(len(members), shard.size, digest=members.digest)
    if not scanned:
        return row, True, None
    return row, bool(folder and folder.write(members, shard)), members


def _newer(shard: Listed, folder: FolderIndex) -> tuple[Row, bool, Members | None]:
    """Describe a shard changed after its index was written: copied, or rewritten in as many bytes; returns as `describe`."""
    old, there = folder.newer[name_of(shard)], at_hand(shard.url)
    if there is not None and (there.shard_bytes, len(there)) != (shard.size, old.samples):
        there = None
    if there and folder.copied and agrees(shard.url, there):
        return old, True, None
    members = scan(shard.url)
    if there is None or not there.table.equals(members.table):
        log.warning("%s: was rewritten in as many bytes since it was indexed; it is indexed anew", shard.url)
        row = Row(len(members), shard.size, digest=members.digest)
        return row, folder.write(members, shard), members
    if old.sha256 is None:
        row = replace(old, digest=members.digest)
    else:
        with open_seekable(shard.url) as file:
            row = replace(old, sha256=file_digest(file, "sha256").hexdigest())  # type: ignore[arg-type]
    return row, row == old or (folder.writable and folder.place == folder.url), members


def write_or_warn(folder: FolderIndex, save: Callable[[], None]) -> bool:
    """Call `save`, unless the folder cannot be written; warn where it fails. Returns whether it was written."""
    if not folder.writable:
        return False
    try:
        save()
        return True
    except OSError as error:
        if folder.writable:
            log.warning("%s: the index is kept in memory only, for it cannot be written there: %s", folder.url, error)
        folder.writable = False
        return False


def folder_of(shard: Listed) -> str | None:
    """URL of the folder whose index describes a shard; of signed shards, which only `corpus.index` serves, it ends in `?`."""
    if sidecar(shard.url):
        return shard.url.rpartition("/")[0]
    plain = unsigned(shard.url) or ""
    return f"{plain.rpartition('/')[0]}?" if plain.endswith(".tar") else None


def is_signed(folder: str) -> bool:
    """Whether a folder's URL, as `folder_of` gives it, is one of signed shards."""
    return folder.endswith("?") and not is_local(folder)


def name_of(shard: Listed) -> str:
    """A shard's file name, without a query."""
    return without_secrets(shard.url).rpartition("/")[2]
