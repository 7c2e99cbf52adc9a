"""Opens a corpus: finds its shards, takes their counts from the folder's index, and scans those that have none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from hashlib import file_digest
from typing import Literal

import numpy as np

from pipeline.draws import sample_id
from pipeline.errors import ShardError, UserError
from pipeline.ordering.mixture import Portion
from pipeline.recipe.corpus import CorpusSection
from pipeline.shards import naming
from pipeline.shards.corpus import CACHED_SHARDS, Corpus
from pipeline.shards.index import NAME, UNFINISHED, DamagedRows, Index, Lookup, Row, renew
from pipeline.shards.members import Members, agrees, at_hand, load_or_scan, scan, sidecar, sidecar_in
from pipeline.shards.remarks import Remarks
from pipeline.storage import Listed, absolute, changed, exists, expand, is_local, is_writable, join, make_folder, open_seekable

_COPIED_FROM = 16
"""Where so many shards, and all of a folder, are newer than its index, the folder was copied: the ends of each are compared."""

_LOCAL_SCANS, _REMOTE_SCANS = 2, 8  # at a time: parsing is Python's, waiting is the network's

_LOOKED_AT, _MOST_KEYS = 4, 10_000
"""Shards of each corpus in which keys are compared, and how many of each: where shards are numbered alike, these tell."""

log = logging.getLogger(__name__)


@dataclass
class _Folder:
    """What an index says of a folder, and whether a better one may be written there."""

    url: str
    place: str
    """Where an index may be written: there, or in the folder for indices."""
    counts: np.ndarray
    """int64: samples of each shard that is wanted, -1 where the index does not know it."""
    classes: list[str] | None = None
    writable: bool = True
    newer: dict[str, Row] = field(default_factory=dict)
    """What the index says of shards that were changed after it was written."""
    copied: bool = False
    new: dict[str, Row] = field(default_factory=dict)
    """Rows of shards that were scanned."""
    elsewhere: dict[str, str] = field(default_factory=dict)
    """Digests of shards that the index in another place knows."""
    lost: set[str] = field(default_factory=set)
    """Newer shards that are damaged, of which the index must say nothing."""

    def save(self) -> None:
        """Write the index with the new rows; OSError where that cannot be."""
        if not self.new and not self.lost:
            renew(self.place)
            return
        try:
            index = Index.load(self.place)
        except (FileNotFoundError, DamagedRows):
            index = Index(classes=self.classes)
        index.rows = {name: row for name, row in (index.rows | self.new).items() if name not in self.lost}
        make_folder(self.place)
        index.save(self.place)

    def write(self, members: Members, shard: Listed) -> bool:
        """Write what describes a shard; returns whether that is beside it now."""
        beside = self.place == self.url
        target = sidecar(shard.url) if beside else join(self.place, f"{_name(shard).removesuffix('.tar')}.members.parquet")

        def save() -> None:
            make_folder(self.place)
            members.save(target or "")

        return _write(self, save) and beside


def open_corpus(
    shards: str | Sequence[str],
    image: str | None = None,
    index: bool = True,
    progress: Callable[[int, int], None] | None = None,
    keep_damaged: bool = False,
    frames: int | None = None,
    index_in: str | None = None,
    keys: Literal["name", "shard"] = "name",
) -> Corpus:
    """Open shards as a corpus.

    Shards that no index describes (or whose size is not the one in the index, or which are newer than it) are scanned, and what
    was found is written beside them where that is possible, so that the next time nothing is scanned.

    Args:
        shards: folder, brace pattern, glob, URL, or a list of these.
        image: extension of the image to take where a sample has several; else its first.
        index: write the index of scanned shards beside them.
        progress: called with (shards scanned, shards to scan).
        keep_damaged: leave damaged shards in the corpus, with no samples and the reason in `Corpus.damaged`, in place of
            raising.
        frames: how many images of each sample are frames of a clip; None takes one image of each.
        index_in: folder for the index of shards that none beside them describes; in place of beside them.
        keys: what ids stand for, see `Corpus`.

    Raises:
        UserError: nothing there; see `pipeline.storage.expand`; or a folder that an interrupted pack left.
        ShardError: a shard is damaged; the message says how many are.
    """
    listed = expand(shards)
    _refuse_photo(listed)
    sizes = np.array([shard.size for shard in listed], np.int64)
    places: dict[str, list[int]] = {}
    for i, shard in enumerate(listed):
        places.setdefault(_folder_of(shard) or "", []).append(i)
    folders = {
        url: _open_folder(url, [listed[i] for i in inside], index, index_in and absolute(index_in))
        for url, inside in places.items()
        if url
    }
    counts = np.full(len(listed), -1, np.int64)
    for url, folder in folders.items():
        counts[places[url]] = folder.counts
    unknown = np.flatnonzero(counts < 0).tolist()
    counts[unknown] = 0
    _warn_of_scans([listed[i] for i in unknown], folders)
    remarks = Remarks()
    damaged, scanned = _scan(listed, unknown, counts, folders, progress, remarks)
    for sentence in remarks.sentences(chosen=bool(image or frames)):
        log.warning("%s", sentence)
    if damaged and not keep_damaged:
        first = min(damaged)
        more = f" (and {len(damaged) - 1} more damaged of {len(listed)} shards)" if len(damaged) > 1 else ""
        raise ShardError(listed[first].url, f"{damaged[first]}{more}; repair or leave out, `pseudolabel inspect` lists all")
    for folder in folders.values():
        if (folder.new or folder.newer) and folder.writable:
            _write(folder, folder.save)
    elsewhere = {
        i: digest
        for url, folder in folders.items()
        if folder.elsewhere
        for i in places[url]
        if (digest := folder.elsewhere.get(_name(listed[i]))) is not None
    }
    known = {tuple(classes) for folder in folders.values() if (classes := folder.classes) is not None}
    corpus = Corpus(
        urls=[shard.url for shard in listed],
        sizes=sizes,
        counts=counts,
        classes=list(next(iter(known))) if len(known) == 1 else None,
        image=image,
        frames=frames,
        damaged=damaged,
        scanned=scanned | elsewhere,
        index=index_in and absolute(index_in),
        disagreement=f"its folders have {len(known)} different lists of classes" if len(known) > 1 else None,
        keys=keys,
    )
    if unknown:
        corpus.forget_members()  # a shard of as many bytes may have been read before it was rewritten
    return corpus


def open_training_corpus(spec: CorpusSection, progress: Callable[[int, int], None] | None = None) -> Corpus:
    """Open what a recipe's `corpus` section names: one corpus, or the corpora of a mixture with their shards end to end.

    Args: as for `open_corpus`, whose errors it raises.
    """
    corpus = _open_parts(spec, progress)
    warn_of_namesakes(corpus)
    return corpus


def _open_parts(spec: CorpusSection, progress: Callable[[int, int], None] | None) -> Corpus:
    if not spec.mix:
        return open_corpus(spec.shards, spec.image, progress=progress, frames=spec.frames, index_in=spec.index, keys=spec.keys)
    parts = [
        open_corpus(part.shards, spec.image, progress=progress, frames=spec.frames, index_in=spec.index)
        for part in spec.mix.values()
    ]
    starts = np.cumsum([0, *(len(part.urls) for part in parts)]).tolist()
    return Corpus(
        urls=[url for part in parts for url in part.urls],
        sizes=np.concatenate([part.sizes for part in parts]),
        counts=np.concatenate([part.counts for part in parts]),
        image=spec.image,
        frames=spec.frames,
        scanned={start + i: digest for start, part in zip(starts, parts) for i, digest in part.scanned.items()},
        index=spec.index and absolute(spec.index),
        disagreement="it is a mixture of corpora",
        portions=tuple(Portion(name, s.weight, len(part.urls)) for (name, s), part in zip(spec.mix.items(), parts)),
        keys=spec.keys,
    )


def warn_of_namesakes(corpus: Corpus) -> None:
    """Say so where shards are numbered alike, so that samples of one name would be given the same chance.

    To look at all keys would be to read the members of every shard; the first few are looked at.
    """
    found, samples, shards = _namesakes(corpus)
    if found:
        log.warning(
            f"{found:,} of {samples:,} samples looked at in the first {shards} of {len(corpus.urls):,} shards have the key of a "
            "sample in another shard: they are given the same crops and labels, and one that kills its decoder is quarantined "
            "with all of its name. corpus.keys: shard tells them apart, and draws anew (`pseudolabel inspect` counts them all)"
        )


def _namesakes(corpus: Corpus) -> tuple[int, int, int]:
    """Samples whose id another shard has too, of how many, in how many shards; of the first shards of each corpus."""
    if corpus.keys == "shard" or len(corpus.urls) == 1:
        return 0, 0, 0
    firsts = np.cumsum([0, *(portion.shards for portion in corpus.portions[:-1])]).tolist()
    wanted = {i for first in firsts for i in range(first, min(first + _LOOKED_AT, len(corpus.urls)))}
    ids: list[np.ndarray] = []
    for i in sorted(wanted):
        beside = sidecar(corpus.urls[i])
        if not (beside or is_local(corpus.urls[i])):  # it would be read whole
            continue
        try:
            members = (
                load_or_scan(corpus.urls[i], int(corpus.sizes[i]))[0] if is_local(corpus.urls[i]) else Members.load(beside or "")
            )
        except (OSError, ValueError, ShardError):  # who reads it will say so
            continue
        keys = members.table.column("key").slice(0, _MOST_KEYS).to_pylist()
        prefix = corpus.prefix(i)
        ids.append(np.array([sample_id(prefix + key) for key in set(keys)], np.uint64))
    times = np.unique(np.concatenate(ids), return_counts=True)[1] if ids else np.zeros(0, np.int64)
    return int(times[times > 1].sum()), int(times.sum()), len(ids)


def _refuse_photo(listed: list[Listed]) -> None:
    for shard in listed:
        if naming.is_image(_name(shard).lower().rpartition(".")[2]):
            raise UserError(f"{shard.url}: this is an image, not a shard; make shards of its folder: pseudolabel pack SRC DST")


def _scan(
    listed: list[Listed],
    unknown: list[int],
    counts: np.ndarray,
    folders: dict[str, _Folder],
    progress: Callable[[int, int], None] | None,
    remarks: Remarks,
) -> tuple[dict[int, str], dict[int, str]]:
    """Fill in the counts of shards that no index describes.

    Returns:
        The reasons of the damaged ones, and the digests of those that no file beside them describes, in the corpus' order.
    """
    damaged: dict[int, str] = {}
    kept: dict[int, str] = {}
    if not unknown:
        return damaged, kept

    def look(i: int) -> tuple[Row, bool, Members | None]:
        shard = listed[i]
        folder = folders.get(_folder_of(shard) or "")
        try:
            return _newer(shard, folder) if folder and _name(shard) in folder.newer else _unknown(shard, folder)
        except OSError as error:
            raise ShardError(shard.url, f"cannot be read: {str(error).removeprefix(shard.url + ': ')}") from None

    local = all(is_local(listed[i].url) for i in unknown)
    pool = ThreadPoolExecutor(_LOCAL_SCANS if local else _REMOTE_SCANS)
    try:
        running = {pool.submit(look, i): i for i in unknown}
        for done, future in enumerate(as_completed(running), 1):
            i, folder = running[future], folders.get(_folder_of(listed[running[future]]) or "")
            try:
                row, described, members = future.result()
            except ShardError as error:
                damaged[i] = error.reason
                if folder and _name(listed[i]) in folder.newer:
                    folder.lost.add(_name(listed[i]))
            else:
                counts[i] = row.samples
                if members is not None:
                    remarks.add_images(members)
                    remarks.add_labels(members.unread, members.text)
                if not described:
                    kept[i] = row.sha256 or row.digest or ""
                if folder and (folder.newer.get(_name(listed[i])) != row or folder.place != folder.url):
                    folder.new[_name(listed[i])] = row
            if progress:
                progress(done, len(unknown))
    finally:
        pool.shutdown(cancel_futures=True)
    return dict(sorted(damaged.items())), dict(sorted(kept.items()))


def _unknown(shard: Listed, folder: _Folder | None) -> tuple[Row, bool, Members | None]:
    """What is found of a shard that no index describes, whether a file beside it now says so, and what was scanned."""
    members, scanned = load_or_scan(shard.url, shard.size, since=shard.changed)
    row = Row(len(members), shard.size, digest=members.digest)
    if not scanned:
        return row, True, None
    return row, bool(folder and folder.write(members, shard)), members


def _newer(shard: Listed, folder: _Folder) -> tuple[Row, bool, Members | None]:
    """The same of a shard that was changed after its index was written: copied, or rewritten in as many bytes."""
    old, there = folder.newer[_name(shard)], at_hand(shard.url)
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


def _warn_of_scans(shards: list[Listed], folders: dict[str, _Folder]) -> None:
    """Say what it costs that nothing can be kept of what is scanned: remote shards are read whole for that."""
    lost = [
        shard
        for shard in shards
        if not is_local(shard.url) and not getattr(folders.get(_folder_of(shard) or ""), "writable", False)
    ]
    if lost:
        size = sum(shard.size for shard in lost) / 1e9
        log.warning(
            "%d shards have no index and their folder cannot be written: %.3g GB are read to index them, now, and again by each "
            "process that reads them, more than once where these are more than %d; corpus.index: URL names a place to keep it",
            *(len(lost), size, CACHED_SHARDS),
        )


def _open_folder(url: str, listed: list[Listed], may_write: bool, index_in: str | None) -> _Folder:
    shards, sizes = [shard.url for shard in listed], np.array([shard.size for shard in listed], np.int64)
    place = sidecar_in(index_in, shards[0]).rpartition("/")[0] if index_in else url
    folder = _Folder(url, place, np.full(len(shards), -1, np.int64), writable=may_write and is_writable(place))
    try:
        lookup = Lookup.load(url)
        folder.classes = lookup.classes
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


def _look_elsewhere(folder: _Folder, listed: list[Listed]) -> None:
    """Take the counts that the folder's own index does not know from the one in the folder for indices."""
    try:
        lookup = replace(Lookup.load(folder.place), folder=folder.url)
        written = changed(join(folder.place, NAME))
        wanted = [
            n
            for n, shard in enumerate(listed)
            if folder.counts[n] < 0 and (written is None or (shard.changed or written) <= written)
        ]
        shards, sizes = [listed[n].url for n in wanted], np.array([listed[n].size for n in wanted], np.int64)
        digests = dict(lookup.find("digest", shards, sizes))
        for k, samples in lookup.find("samples", shards, sizes):
            name = _name(listed[wanted[k]])
            folder.counts[wanted[k]], folder.elsewhere[name] = samples, digests.get(k) or ""
            folder.newer.pop(name, None)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        log.warning("%s; it is made again", error)


def _distrust(folder: _Folder, lookup: Lookup, listed: list[Listed]) -> None:
    """Take back the counts of shards that are newer than the index, as a tar that is rewritten often keeps its size, and of empty
    files, which are no shards."""
    folder.counts[[n for n, shard in enumerate(listed) if shard.size == 0]] = -1
    written, known = changed(join(folder.url, NAME)), np.flatnonzero(folder.counts >= 0).tolist()
    newer = [n for n in known if written is not None and (listed[n].changed or written) > written]
    if not newer:
        return
    shards, sizes = [listed[n].url for n in newer], np.array([listed[n].size for n in newer], np.int64)
    found = {column: dict(lookup.find(column, shards, sizes)) for column in ("sha256", "digest")}
    for place, n in enumerate(newer):
        sums = {column: values.get(place) for column, values in found.items()}
        folder.newer[_name(listed[n])] = Row(int(folder.counts[n]), listed[n].size, **sums)
    folder.copied = len(newer) == len(known) > _COPIED_FROM
    folder.counts[newer] = -1


def _write(folder: _Folder, save: Callable[[], None]) -> bool:
    """Write beside the shards, unless that is not wanted or has failed before; returns whether it was written."""
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


def _folder_of(shard: Listed) -> str | None:
    return shard.url.rpartition("/")[0] if sidecar(shard.url) else None


def _name(shard: Listed) -> str:
    return shard.url.rpartition("/")[2]
