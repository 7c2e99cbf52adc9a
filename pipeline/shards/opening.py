"""Opens a corpus: finds its shards, takes their counts from the folder's index, and scans those that have none."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Literal

import numpy as np

from pipeline.draws import sample_id
from pipeline.errors import ShardError, UserError
from pipeline.ordering.mixture import Portion
from pipeline.recipe.corpus import CorpusSection
from pipeline.recipe.schema import Recipe
from pipeline.shards import naming
from pipeline.shards.annotations import KEPT, open_annotation, open_kept
from pipeline.shards.corpus import CACHED_SHARDS, Corpus
from pipeline.shards.index import Row
from pipeline.shards.label_share import with_labelled
from pipeline.shards.members import Members, sidecar
from pipeline.shards.remarks import Remarks
from pipeline.shards.scanning import load_or_scan
from pipeline.shards.stale import FolderIndex, describe, folder_of, is_signed, name_of, open_folder, write_or_warn
from pipeline.storage import Listed, absolute, expand, is_local, without_secrets

_LOCAL_SCANS, _REMOTE_SCANS = 2, 8  # at a time: local scans are bound by Python, remote ones by the network

_LOOKED_AT, _MOST_KEYS = 4, 10_000
"""How many shards of each corpus are compared for equal keys, and how many keys of each: enough to see shards numbered alike."""

log = logging.getLogger(__name__)


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

    Shards that no index describes, or that have another size than in the index or are newer than it, are scanned. What is found
    is written beside them where possible, so that nothing is scanned the next time.

    Args:
        shards: folder, brace pattern, glob, URL, or a list of these.
        image: extension of the image to take where a sample has several; None takes the first.
        index: write the index of scanned shards beside them.
        progress: called with (shards scanned, shards to scan).
        keep_damaged: keep damaged shards in the corpus, with no samples and the reason in `Corpus.damaged`, and do not raise.
        frames: images of each sample that are frames of a clip; None takes one image of each sample.
        index_in: folder for the index of shards that have none beside them; None writes it beside them.
        keys: what a sample's id is made of, see `Corpus`.

    Raises:
        UserError: no shards, see `pipeline.storage.expand`; or a folder that an interrupted pack left.
        ShardError: a shard is damaged; the message says how many are.
    """
    listed, now = expand(shards), time.time()
    _refuse_photo(listed)
    sizes = np.array([shard.size for shard in listed], np.int64)
    places: dict[str, list[int]] = {}
    for i, shard in enumerate(listed):
        places.setdefault(folder_of(shard) or "", []).append(i)
    folders = {
        url: open_folder(url, [listed[i] for i in inside], index, index_in and absolute(index_in))
        for url, inside in places.items()
        if url and (index_in or not is_signed(url))
    }
    counts = np.full(len(listed), -1, np.int64)
    for url, folder in folders.items():
        counts[places[url]] = folder.counts
    unknown = np.flatnonzero(counts < 0).tolist()
    counts[unknown] = 0
    _warn_of_scans([listed[i] for i in unknown], folders, index_in)
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
            write_or_warn(folder, folder.save)
    elsewhere = {
        i: digest
        for url, folder in folders.items()
        if folder.elsewhere
        for i in places[url]
        if (digest := folder.elsewhere.get(name_of(listed[i]))) is not None
    }
    known = {
        (tuple(folder.classes), None if folder.numbers is None else tuple(folder.numbers))
        for folder in folders.values()
        if folder.classes is not None
    }
    classes, numbers = next(iter(known)) if len(known) == 1 else (None, None)
    corpus = Corpus(
        urls=[shard.url for shard in listed],
        sizes=sizes,
        counts=counts,
        classes=None if classes is None else list(classes),
        numbers=None if numbers is None else list(numbers),
        image=image,
        frames=frames,
        damaged=damaged,
        scanned=scanned | elsewhere,
        index=index_in and absolute(index_in),
        disagreement=f"its folders have {len(known)} different lists of classes" if len(known) > 1 else None,
        keys=keys,
        versions=np.array([int(1e9 * (shard.changed or now)) for shard in listed], np.int64),
    )
    if unknown:
        corpus.forget_members()  # some storage knows the second of a change only
    return corpus


def open_training_corpus(
    spec: CorpusSection, progress: Callable[[int, int], None] | None = None, seed: int | None = None
) -> Corpus:
    """Open the corpus of a recipe's `corpus` section; of a mixture, the shards of all corpora follow each other.

    Args:
        spec: the section.
        progress: as for `open_corpus`, whose errors this function raises.
        seed: the recipe's seed, by which `corpus.labelled` is chosen.
    """
    corpus = _open_parts(spec, progress)
    warn_of_namesakes(corpus)
    return annotated(corpus, spec, seed)


def names_of(recipe: Recipe, ids: np.ndarray | Sequence[int]) -> list[tuple[str, str]]:
    """The files of samples of a recipe's corpus, by their ids: for each the shard, and the name of the image in it.

    Args:
        recipe: the recipe.
        ids: uint64 (n,), as in the column `id` of batches and tables.

    Raises:
        UserError: no sample has one of these ids.
    """
    return _open_parts(recipe.corpus, None).names_of(ids)


def annotated(corpus: Corpus, spec: CorpusSection, seed: int | None) -> Corpus:
    """The part of the corpus that its section keeps, with the labels that it names.

    Errors as in `open_annotation` and `with_labelled`; `seed` as of `open_training_corpus`.
    """
    if not (spec.annotations or spec.keep or spec.labelled):
        return corpus
    names = [corpus.shard_name(i) for i in range(len(corpus.urls))]
    if spec.keep:
        kept = open_kept(spec.keep, names)
        none = np.zeros(0, np.int64)
        rows = [none if i in corpus.damaged else kept.labelled_rows(i, int(n)) for i, n in enumerate(corpus.counts)]
        corpus = replace(corpus.select(rows), kept=kept)
        if not corpus.samples:
            raise UserError(f"{KEPT}: no image of {without_secrets(spec.keep.table)} is within the bounds; widen them")
    if spec.labelled:
        if seed is None:
            raise ValueError("a corpus with `labelled` is opened with the recipe's seed")
        corpus = with_labelled(corpus, spec.labelled.share, seed, spec.labelled.batch)
        names *= len(corpus.urls) // len(names)
    opened = (open_annotation(f"corpus.annotations.{name}", each, names) for name, each in spec.annotations.items())
    return replace(corpus, annotations=tuple(opened))


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
        versions=np.concatenate([part.versions for part in parts if part.versions is not None]),
    )


def warn_of_namesakes(corpus: Corpus) -> None:
    """Warn where samples of different shards have the same key, and so get the same random numbers.

    Only the first few shards are compared: comparing all would read the members of every shard.
    """
    found, samples, shards = _namesakes(corpus)
    if found:
        log.warning(
            f"{found:,} of {samples:,} samples looked at in the first {shards} of {len(corpus.urls):,} shards have the key of a "
            "sample in another shard: they are given the same crops and labels, and one that kills its decoder is quarantined "
            "with all of its name. corpus.keys: shard tells them apart, and draws anew (`pseudolabel inspect` counts them all)"
        )


def _namesakes(corpus: Corpus) -> tuple[int, int, int]:
    """Compares keys in the first shards of each corpus: samples whose id occurs again, samples compared, shards compared."""
    if corpus.keys == "shard" or len(corpus.urls) == 1:
        return 0, 0, 0
    firsts = np.cumsum([0, *(portion.shards for portion in corpus.portions[:-1])]).tolist()
    wanted = {i for first in firsts for i in range(first, min(first + _LOOKED_AT, len(corpus.urls)))}
    ids: list[np.ndarray] = []
    for i in sorted(wanted):
        beside = sidecar(corpus.urls[i])
        if not (beside or is_local(corpus.urls[i])):  # the whole shard would be read
            continue
        try:
            members = (
                load_or_scan(corpus.urls[i], int(corpus.sizes[i]))[0] if is_local(corpus.urls[i]) else Members.load(beside or "")
            )
        except (OSError, ValueError, ShardError):  # reported when the shard is read
            continue
        keys = members.table.column("key").slice(0, _MOST_KEYS).to_pylist()
        prefix = corpus.prefix(i)
        ids.append(np.array([sample_id(prefix + key) for key in set(keys)], np.uint64))
    times = np.unique(np.concatenate(ids), return_counts=True)[1] if ids else np.zeros(0, np.int64)
    return int(times[times > 1].sum()), int(times.sum()), len(ids)


def _refuse_photo(listed: list[Listed]) -> None:
    for shard in listed:
        if naming.is_image(name_of(shard).lower().rpartition(".")[2]):
            raise UserError(f"{shard.url}: this is an image, not a shard; make shards of its folder: pseudolabel pack SRC DST")


def _scan(
    listed: list[Listed],
    unknown: list[int],
    counts: np.ndarray,
    folders: dict[str, FolderIndex],
    progress: Callable[[int, int], None] | None,
    remarks: Remarks,
) -> tuple[dict[int, str], dict[int, str]]:
    """Fill in the counts of shards that no index describes.

    Returns:
        Why shards are damaged, and the digests of shards that no file beside them describes; by number, in the corpus' order.
    """
    damaged: dict[int, str] = {}
    kept: dict[int, str] = {}
    if not unknown:
        return damaged, kept

    def look(i: int) -> tuple[Row, bool, Members | None]:
        shard = listed[i]
        folder = folders.get(folder_of(shard) or "")
        try:
            return describe(shard, folder)
        except OSError as error:
            raise ShardError(shard.url, f"cannot be read: {str(error).removeprefix(shard.url + ': ')}") from None

    local = all(is_local(listed[i].url) for i in unknown)
    pool = ThreadPoolExecutor(_LOCAL_SCANS if local else _REMOTE_SCANS)
    try:
        running = {pool.submit(look, i): i for i in unknown}
        for done, future in enumerate(as_completed(running), 1):
            i, folder = running[future], folders.get(folder_of(listed[running[future]]) or "")
            try:
                row, described, members = future.result()
            except ShardError as error:
                damaged[i] = error.reason
                if folder and name_of(listed[i]) in folder.newer:
                    folder.lost.add(name_of(listed[i]))
            else:
                counts[i] = row.samples
                if members is not None:
                    remarks.add_images(members)
                    remarks.add_labels(members.unread, members.text)
                if not described:
                    kept[i] = row.sha256 or row.digest or ""
                if folder and (folder.newer.get(name_of(listed[i])) != row or folder.place != folder.url):
                    folder.new[name_of(listed[i])] = row
            if progress:
                progress(done, len(unknown))
    finally:
        pool.shutdown(cancel_futures=True)
    return dict(sorted(damaged.items())), dict(sorted(kept.items()))


def _warn_of_scans(shards: list[Listed], folders: dict[str, FolderIndex], index_in: str | None) -> None:
    """Warn that remote shards are read whole each time, where their index cannot be written."""
    lost = [
        shard
        for shard in shards
        if not is_local(shard.url) and not getattr(folders.get(folder_of(shard) or ""), "writable", False)
    ]
    if lost:
        size = sum(shard.size for shard in lost) / 1e9
        log.warning(
            "%d shards have no index and their folder cannot be written: %.3g GB are read to index them, now, and again by each "
            "process that reads them, more than once where these are more than %d; %s",
            *(len(lost), size, CACHED_SHARDS),
            "corpus.index: URL names a place to keep it"
            if all(map(folder_of, lost)) and not index_in
            else "corpus.index must be a place that can be written, and keeps the index of names that end in .tar and have no "
            "query but a signature",
        )
