"""Opens a corpus: finds its shards, takes their counts from the folder's index, and scans those that have none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from pipeline.errors import ShardError, UserError
from pipeline.shards.corpus import Corpus
from pipeline.shards.index import UNFINISHED, Index, Row
from pipeline.shards.members import load_or_scan, sidecar
from pipeline.storage import Listed, exists, expand, is_local, is_writable, join

_LOCAL_SCANS, _REMOTE_SCANS = 2, 8  # at a time: parsing is Python's, waiting is the network's

log = logging.getLogger(__name__)


@dataclass
class _Folder:
    """What an index says of a folder, and whether a better one may be written there."""

    url: str
    index: Index = field(default_factory=Index)
    writable: bool = True
    grown: bool = False


def open_corpus(
    shards: str | Sequence[str],
    image: str | None = None,
    index: bool = True,
    progress: Callable[[int, int], None] | None = None,
    keep_damaged: bool = False,
) -> Corpus:
    """Open shards as a corpus.

    Shards that no index describes (or whose size is not the one in the index) are scanned, and what was found is written beside
    them where that is possible, so that the next time nothing is scanned.

    Args:
        shards: folder, brace pattern, glob, URL, or a list of these.
        image: extension of the image to take where a sample has several; else its first.
        index: write the index of scanned shards beside them.
        progress: called with (shards scanned, shards to scan).
        keep_damaged: leave damaged shards in the corpus, with no samples and the reason in `Corpus.damaged`, in place of
            raising.

    Raises:
        UserError: nothing there; see `pipeline.storage.expand`; or a folder that an interrupted pack left.
        ShardError: a shard is damaged; the message says how many are.
    """
    listed = expand(shards)
    folders: dict[str, _Folder] = {}
    for shard in listed:
        url = _folder_of(shard)
        if url is not None and url not in folders:
            folders[url] = _open_folder(url, may_write=index)
    counts = np.zeros(len(listed), np.int64)
    unknown: list[int] = []
    for i, shard in enumerate(listed):
        folder = folders.get(_folder_of(shard) or "")
        row = folder.index.rows.get(_name(shard)) if folder else None
        if row is not None and row.bytes == shard.size:
            counts[i] = row.samples
        else:
            unknown.append(i)
    damaged = _scan(listed, unknown, counts, folders, image, progress)
    if damaged and not keep_damaged:
        first = min(damaged)
        more = f" (and {len(damaged) - 1} more damaged of {len(listed)} shards)" if len(damaged) > 1 else ""
        raise ShardError(listed[first].url, f"{damaged[first]}{more}; repair or leave out, `pseudolabel inspect` lists all")
    for folder in folders.values():
        if folder.grown and folder.writable:
            _write(folder, partial(folder.index.save, folder.url))
    known = {tuple(folder.index.classes) for folder in folders.values() if folder.index.classes is not None}
    return Corpus(
        urls=[shard.url for shard in listed],
        sizes=np.array([shard.size for shard in listed], np.int64),
        counts=counts,
        classes=list(next(iter(known))) if len(known) == 1 else None,
        image=image,
        damaged=damaged,
        disagreement=f"its folders have {len(known)} different lists of classes" if len(known) > 1 else None,
    )


def _scan(
    listed: list[Listed],
    unknown: list[int],
    counts: np.ndarray,
    folders: dict[str, _Folder],
    image: str | None,
    progress: Callable[[int, int], None] | None,
) -> dict[int, str]:
    """Fill in the counts of shards that no index describes; returns the reasons of those that are damaged."""
    damaged: dict[int, str] = {}
    if not unknown:
        return damaged

    def count(i: int) -> int:
        shard = listed[i]
        members, scanned = load_or_scan(shard.url, shard.size)
        folder, beside = folders.get(_folder_of(shard) or ""), sidecar(shard.url)
        if scanned and folder and folder.writable and beside:
            _write(folder, partial(members.save, beside))
        return len(members)

    local = all(is_local(listed[i].url) for i in unknown)
    pool = ThreadPoolExecutor(_LOCAL_SCANS if local else _REMOTE_SCANS)
    try:
        running = {pool.submit(count, i): i for i in unknown}
        for done, future in enumerate(as_completed(running), 1):
            i = running[future]
            try:
                counts[i] = future.result()
            except ShardError as error:
                damaged[i] = error.reason
            else:
                if folder := folders.get(_folder_of(listed[i]) or ""):
                    folder.index.rows[_name(listed[i])] = Row(int(counts[i]), listed[i].size)
                    folder.grown = True
            if progress:
                progress(done, len(unknown))
    finally:
        pool.shutdown(cancel_futures=True)
    return damaged


def _open_folder(url: str, may_write: bool) -> _Folder:
    folder = _Folder(url, writable=may_write and is_writable(url))
    try:
        folder.index = Index.load(url)
    except (FileNotFoundError, PermissionError):
        if is_writable(url) and exists(join(url, UNFINISHED)):
            raise UserError(f"{url}: holds an unfinished pack; run the same `pseudolabel pack` again to complete it") from None
    except ValueError as error:
        log.warning("%s; it is left alone, and the shards are scanned", error)
        folder.writable = False
    except OSError as error:
        raise UserError(f"the index of the shards cannot be read: {error}") from None
    return folder


def _write(folder: _Folder, save: Callable[[], None]) -> None:
    try:
        save()
    except OSError as error:
        if folder.writable:
            log.warning("%s: the index is kept in memory only, for it cannot be written there: %s", folder.url, error)
        folder.writable = False


def _folder_of(shard: Listed) -> str | None:
    return shard.url.rpartition("/")[0] if sidecar(shard.url) else None


def _name(shard: Listed) -> str:
    return shard.url.rpartition("/")[2]
