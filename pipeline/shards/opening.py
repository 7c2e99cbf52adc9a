"""Opens a corpus: finds its shards, takes their counts from the folder's index, and scans those that have none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from pipeline.errors import ShardError, UserError
from pipeline.mixture import Portion
from pipeline.recipe import schema
from pipeline.shards.corpus import Corpus
from pipeline.shards.index import UNFINISHED, DamagedRows, Index, Lookup, Row
from pipeline.shards.members import load_or_scan, sidecar
from pipeline.storage import Listed, exists, expand, is_local, is_writable, join

_LOCAL_SCANS, _REMOTE_SCANS = 2, 8  # at a time: parsing is Python's, waiting is the network's

log = logging.getLogger(__name__)


@dataclass
class _Folder:
    """What an index says of a folder, and whether a better one may be written there."""

    url: str
    counts: np.ndarray
    """int64: samples of each shard that is wanted, -1 where the index does not know it."""
    classes: list[str] | None = None
    writable: bool = True
    new: dict[str, Row] = field(default_factory=dict)
    """Rows of shards that were scanned."""

    def save(self) -> None:
        """Write the index with the new rows; OSError where that cannot be."""
        try:
            index = Index.load(self.url)
        except (FileNotFoundError, DamagedRows):
            index = Index(classes=self.classes)
        index.rows |= self.new
        index.save(self.url)


def open_corpus(
    shards: str | Sequence[str],
    image: str | None = None,
    index: bool = True,
    progress: Callable[[int, int], None] | None = None,
    keep_damaged: bool = False,
    frames: int | None = None,
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
        frames: how many images of each sample are frames of a clip; None takes one image of each.

    Raises:
        UserError: nothing there; see `pipeline.storage.expand`; or a folder that an interrupted pack left.
        ShardError: a shard is damaged; the message says how many are.
    """
    listed = expand(shards)
    sizes = np.array([shard.size for shard in listed], np.int64)
    places: dict[str, list[int]] = {}
    for i, shard in enumerate(listed):
        places.setdefault(_folder_of(shard) or "", []).append(i)
    folders = {
        url: _open_folder(url, [listed[i].url for i in inside], sizes[inside], may_write=index)
        for url, inside in places.items()
        if url
    }
    counts = np.full(len(listed), -1, np.int64)
    for url, folder in folders.items():
        counts[places[url]] = folder.counts
    unknown = np.flatnonzero(counts < 0).tolist()
    counts[unknown] = 0
    damaged = _scan(listed, unknown, counts, folders, progress)
    if damaged and not keep_damaged:
        first = min(damaged)
        more = f" (and {len(damaged) - 1} more damaged of {len(listed)} shards)" if len(damaged) > 1 else ""
        raise ShardError(listed[first].url, f"{damaged[first]}{more}; repair or leave out, `pseudolabel inspect` lists all")
    for folder in folders.values():
        if folder.new and folder.writable:
            _write(folder, folder.save)
    known = {tuple(classes) for folder in folders.values() if (classes := folder.classes) is not None}
    return Corpus(
        urls=[shard.url for shard in listed],
        sizes=sizes,
        counts=counts,
        classes=list(next(iter(known))) if len(known) == 1 else None,
        image=image,
        frames=frames,
        damaged=damaged,
        disagreement=f"its folders have {len(known)} different lists of classes" if len(known) > 1 else None,
    )


def open_training_corpus(spec: schema.Corpus, progress: Callable[[int, int], None] | None = None) -> Corpus:
    """Open what a recipe's `corpus` section names: one corpus, or the corpora of a mixture with their shards end to end.

    Args: as for `open_corpus`, whose errors it raises.
    """
    if not spec.mix:
        return open_corpus(spec.shards, spec.image, progress=progress, frames=spec.frames)
    parts = [open_corpus(part.shards, spec.image, progress=progress, frames=spec.frames) for part in spec.mix.values()]
    return Corpus(
        urls=[url for part in parts for url in part.urls],
        sizes=np.concatenate([part.sizes for part in parts]),
        counts=np.concatenate([part.counts for part in parts]),
        image=spec.image,
        frames=spec.frames,
        disagreement="it is a mixture of corpora",
        portions=tuple(Portion(name, s.weight, len(part.urls)) for (name, s), part in zip(spec.mix.items(), parts)),
    )


def _scan(
    listed: list[Listed],
    unknown: list[int],
    counts: np.ndarray,
    folders: dict[str, _Folder],
    progress: Callable[[int, int], None] | None,
) -> dict[int, str]:
    """Fill in the counts of shards that no index describes; returns the reasons of the damaged ones, in the corpus' order."""
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
                    folder.new[_name(listed[i])] = Row(int(counts[i]), listed[i].size)
            if progress:
                progress(done, len(unknown))
    finally:
        pool.shutdown(cancel_futures=True)
    return dict(sorted(damaged.items()))


def _open_folder(url: str, shards: list[str], sizes: np.ndarray, may_write: bool) -> _Folder:
    folder = _Folder(url, np.full(len(shards), -1, np.int64), writable=may_write and is_writable(url))
    try:
        lookup = Lookup.load(url)
        folder.classes = lookup.classes
        for n, samples in lookup.find("samples", shards, sizes):
            folder.counts[n] = samples
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
