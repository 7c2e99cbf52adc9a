"""Inspects a corpus: counts what is in it and what would be quarantined, and with `deep` decodes everything to find damage."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from queue import SimpleQueue
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipeline.engines.decoding import WindowDecoder
from pipeline.errors import ShardError
from pipeline.images.check import Header, check_frames
from pipeline.images.codec import pillow
from pipeline.processes.child import MOST_KILLS_FROM_OUTSIDE, ChildProcess, Died
from pipeline.shards import naming
from pipeline.shards.corpus import Corpus, Sample
from pipeline.shards.labelled_files import TargetSurvey, TargetTally
from pipeline.shards.remarks import Remarks

_CHUNK = 64 * 2**20  # encoded bytes held at a time by each thread
_NAMED = 1000  # duplicate keys named in a report; all are counted
_THREADS = 4


@dataclass(frozen=True, slots=True)
class Spread:
    """Smallest, middle and largest of the sizes, in pixels."""

    min: int
    median: int
    max: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A sample that would be quarantined."""

    shard: str
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class DamagedShard:
    """A shard that cannot be read; only its bytes count in the report."""

    shard: str
    reason: str


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A key that occurs more than once, and the shards that hold it."""

    key: str
    shards: list[str]


@dataclass(frozen=True, slots=True)
class TargetCounts:
    """What the masks or boxes of a corpus hold.

    Args:
        images: that have a good mask, or a good list of boxes.
        classes: class (its name where known) -> pixels, or boxes.
        ignored: pixels, or boxes, that do not count.
        empty: images without a box.
        degenerate: boxes without area; their images are refused.
    """

    images: int
    classes: dict[str, int]
    ignored: int
    empty: int
    degenerate: int


@dataclass
class CorpusReport:
    """What is in a corpus.

    Args:
        shards: number of shards.
        samples: samples of the shards that could be read.
        bytes: size of all shards together.
        deep: every image was decoded whole.
        formats: codec -> images that would not be quarantined; those that Pillow decodes are counted apart.
        width, height: upright, of the accepted images; None where there are none.
        labels: class (its name where known) -> samples.
        unlabelled: samples without a label.
        masks: what masks hold, None where there are none.
        boxes: what boxes there are, likewise.
        unfit: samples whose mask or boxes training will refuse.
        duplicate_keys: number of keys that occur more than once.
        namesakes: samples that share their key with another one.
        duplicates: the first thousand of these keys.
        quarantine: samples that would be quarantined, in the order of the corpus.
        spoilt: samples whose data is damaged and that can be decoded all the same; found only with `deep`.
        damaged: shards that cannot be read.
        remarks: what else is worth saying of the samples, a line each.
    """

    shards: int
    samples: int
    bytes: int
    deep: bool
    formats: dict[str, int] = field(default_factory=dict)
    width: Spread | None = None
    height: Spread | None = None
    labels: dict[str, int] = field(default_factory=dict)
    unlabelled: int = 0
    masks: TargetCounts | None = None
    boxes: TargetCounts | None = None
    unfit: list[Refused] = field(default_factory=list)
    duplicate_keys: int = 0
    namesakes: int = 0
    duplicates: list[Duplicate] = field(default_factory=list)
    quarantine: list[Refused] = field(default_factory=list)
    spoilt: list[Refused] = field(default_factory=list)
    damaged: list[DamagedShard] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


@dataclass
class _ShardTally:
    """The counts of one shard."""

    formats: Counter[str] = field(default_factory=Counter)
    widths: Counter[int] = field(default_factory=Counter)
    heights: Counter[int] = field(default_factory=Counter)
    labels: Counter[int] = field(default_factory=Counter)
    ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    remarks: Remarks = field(default_factory=Remarks)
    refused: list[Refused] = field(default_factory=list)
    spoilt: list[Refused] = field(default_factory=list)
    member: str | None = None
    targets: TargetTally = field(default_factory=TargetTally)
    unfit: list[Refused] = field(default_factory=list)


def inspect(
    corpus: Corpus,
    deep: bool = False,
    max_pixels: int = 100_000_000,
    progress: Callable[[int, int], None] | None = None,
    targets: TargetSurvey | None = None,
) -> CorpusReport:
    """Check the header of every image, as a run does before decoding; an image that crashes the process counts as bad.

    Args:
        corpus: opened with `keep_damaged=True` where damaged shards are to be reported and not to stop everything.
        deep: also decode every accepted image whole, as runs decode their windows: what cannot be decoded would be quarantined.
        A strict decoder then finds what is damaged and can be decoded all the same.
        max_pixels: images of more pixels are refused, and not decoded.
        progress: called with (shards done, shards).
        targets: counts masks or boxes; in a shard that has both, masks. None counts neither.
    """
    report = CorpusReport(len(corpus.urls), 0, int(corpus.sizes.sum()), deep)
    tallies: dict[int, _ShardTally] = {}
    threads = min(_THREADS, os.cpu_count() or 1, len(corpus.urls))
    pool, children = ThreadPoolExecutor(threads), SimpleQueue[ChildProcess]()
    for _ in range(threads):
        children.put(ChildProcess(_SampleChecker, corpus, deep, max_pixels, targets))

    def inspect_shard(i: int) -> _ShardTally:
        child = children.get()
        try:
            return _inspect_shard(corpus, i, child, targets)
        finally:
            children.put(child)

    try:
        running = {pool.submit(inspect_shard, i): i for i in range(len(corpus.urls))}
        broken: dict[int, str] = {}
        for done, future in enumerate(as_completed(running), 1):
            i = running.pop(future)
            try:
                tallies[i] = future.result()
            except ShardError as error:
                broken[i] = error.reason
            if progress:
                progress(done, len(corpus.urls))
    finally:
        pool.shutdown(cancel_futures=True)
        for _ in range(threads):
            children.get().close()
    report.damaged = [DamagedShard(corpus.urls[i], broken[i]) for i in sorted(broken)]
    remarks = Remarks()
    for i in sorted(tallies):
        remarks.add(tallies[i].remarks)
    report.remarks = remarks.sentences(chosen=bool(corpus.image or corpus.frames))
    _sum_up(report, [tallies[i] for i in sorted(tallies)], corpus.classes)
    _sum_up_targets(report, [tallies[i] for i in sorted(tallies)], corpus)
    _find_duplicates(report, corpus, tallies)
    return report


def _inspect_shard(corpus: Corpus, i: int, child: ChildProcess, targets: TargetSurvey | None) -> _ShardTally:
    """Inspect one shard; its samples are checked in a child process, which any of them may crash."""
    members = corpus.members(i)
    tally = _ShardTally(labels=Counter(corpus.labels(i).tolist()), ids=members.ids)
    tally.remarks.add_images(members)
    unread = corpus.unread_labels(i)
    tally.remarks.add_labels(len(unread), next(iter(unread), ""))
    exts = pc.struct_field(pc.list_flatten(members.table.column("others")), "ext").unique().to_pylist()
    tally.member = next((member for member in (targets.members if targets else ()) if member in exts), None)
    keys, done, kills = members.keys, 0, 0
    while done < len(keys):
        try:
            for found in child.call("check", i, done, tally.member):
                if isinstance(found, str):
                    tally.refused.append(Refused(corpus.urls[i], keys[done], found))
                else:
                    codec, width, height, damage, (counts, unfit) = found
                    tally.targets.add(counts)
                    if unfit:
                        tally.unfit.append(Refused(corpus.urls[i], keys[done], unfit))
                    if damage:
                        tally.spoilt.append(Refused(corpus.urls[i], keys[done], damage))
                    tally.formats[codec] += 1
                    tally.widths[width] += 1
                    tally.heights[height] += 1
                done, kills = done + 1, 0
        except Died as death:
            if done == len(keys):  # after the last of them
                break
            kills += 1
            if not death.from_outside or kills > MOST_KILLS_FROM_OUTSIDE:
                tally.refused.append(Refused(corpus.urls[i], keys[done], death.reason))
                done, kills = done + 1, 0
    return tally


_Checked = tuple[str, int, int, str | None, tuple[TargetTally, str | None]]
"""Of a good sample format, width, height, damage, and what `TargetSurvey.look` found."""


class _SampleChecker:
    """Checks samples, in a child process; arguments as of `inspect`."""

    def __init__(self, corpus: Corpus, deep: bool, max_pixels: int, targets: TargetSurvey | None) -> None:
        self._corpus, self._decoder, self._max_pixels = corpus, WindowDecoder() if deep else None, max_pixels
        self._targets = targets

    def check(self, i: int, start: int, member: str | None) -> Iterator[_Checked | str]:
        """What is found of each sample of shard `i` from row `start` on, or why it would be quarantined.

        Args:
            i: the shard.
            start: the row.
            member: extension of the targets to look at, None for none.
        """
        for sample in _samples(replace(self._corpus, target=member), i, start):
            found = sample.problem or check_frames(sample.files(), self._max_pixels)
            headers = [] if isinstance(found, str) else found
            reason = found if isinstance(found, str) else self._undecodable(headers)
            if reason:
                yield reason
                continue
            first = headers[0]
            damage = next(filter(None, map(damage_in, headers)), None) if self._decoder else None
            looked: tuple[TargetTally, str | None] = TargetTally(), None
            if self._targets and member:
                looked = self._targets.look(member, sample.target, first.height, first.width)
            yield first.codec + (", by Pillow" if first.unusual else ""), first.width, first.height, damage, looked

    def _undecodable(self, headers: list[Header]) -> str | None:
        if self._decoder is None:
            return None
        return next(filter(None, map(self._decoder.whole, headers)), None)


def _samples(corpus: Corpus, i: int, start: int) -> Iterator[Sample]:
    """The samples of a shard from a row on, a bounded number of bytes at a time."""
    sizes = corpus.members(i).table.column("size").to_numpy()[start:]
    piece = np.cumsum(sizes) // _CHUNK
    for rows in np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(piece)) + 1):
        yield from corpus.read(i, start + rows)


def damage_in(header: Header) -> str | None:
    """Decode an image to its last byte with a strict decoder, and say what is damaged.

    Args:
        header: of an image that the engines decode.

    Returns:
        What is damaged, or None.
    """
    encoded = header.encoded
    if header.unusual:
        return None  # Pillow decoded it already
    if header.codec == "jpeg":
        import simplejpeg

        try:
            simplejpeg.decode_jpeg(encoded, "GRAY", fastdct=True, strict=True)  # reads all of the data, at half the cost of RGB
            return None
        except ValueError as error:
            if "nsupported" not in str(error):  # else a kind of JPEG that this library does not know, which PIL may
                return str(error)
    from PIL import UnidentifiedImageError

    try:
        with pillow().open(io.BytesIO(encoded)) as image:
            image.load()
    except UnidentifiedImageError:
        return "its format cannot be identified"
    except Exception as error:  # noqa: BLE001  Pillow's plugins raise anything on damage
        return str(error)
    return None


def _sum_up(report: CorpusReport, tallies: list[_ShardTally], classes: list[str] | None) -> None:
    def total(counters: Iterator[Counter[Any]]) -> Counter[Any]:
        whole: Counter[Any] = Counter()
        for counter in counters:
            whole.update(counter)
        return whole

    labels = total(tally.labels for tally in tallies)
    report.samples = sum(len(tally.ids) for tally in tallies)
    report.formats = dict(total(tally.formats for tally in tallies).most_common())
    report.width = _spread(total(tally.widths for tally in tallies))
    report.height = _spread(total(tally.heights for tally in tallies))
    report.unlabelled = labels.pop(-1, 0)
    named = classes or []
    report.labels = {named[label] if label < len(named) else str(label): labels[label] for label in sorted(labels)}
    report.quarantine = [refused for tally in tallies for refused in tally.refused]
    report.spoilt = [spoilt for tally in tallies for spoilt in tally.spoilt]


def _sum_up_targets(report: CorpusReport, tallies: list[_ShardTally], corpus: Corpus) -> None:
    names = dict(zip(corpus.numbers or (), corpus.classes or ()))
    for member in sorted({tally.member for tally in tallies if tally.member}):
        total = TargetTally()
        for tally in (tally for tally in tallies if tally.member == member):
            total.add(tally.targets)
        classes = {names.get(number, str(number)): total.numbers[number] for number in sorted(total.numbers)}
        counts = TargetCounts(total.images, classes, total.ignored, total.empty, total.degenerate)
        if member == naming.MASK:
            report.masks = counts
        else:
            report.boxes = counts
    report.unfit = [unfit for tally in tallies for unfit in tally.unfit]


def _spread(sizes: Counter[int]) -> Spread | None:
    if not sizes:
        return None
    values = sorted(sizes)
    below = np.cumsum([sizes[value] for value in values])
    return Spread(values[0], values[int(np.searchsorted(below, (below[-1] + 1) // 2))], values[-1])


def _find_duplicates(report: CorpusReport, corpus: Corpus, tallies: dict[int, _ShardTally]) -> None:
    if not tallies:
        return
    ids, times = np.unique(np.concatenate([tally.ids for tally in tallies.values()]), return_counts=True)
    twice = ids[times > 1]
    report.duplicate_keys, report.namesakes = len(twice), int(times[times > 1].sum())
    wanted = twice[:_NAMED]
    places: dict[str, list[str]] = {}
    for i in sorted(tallies):
        rows = np.flatnonzero(np.isin(tallies[i].ids, wanted))
        if len(rows):
            for key in corpus.members(i).take(rows).keys:
                places.setdefault(key, []).append(corpus.urls[i])
    report.duplicates = [Duplicate(key, shards) for key, shards in sorted(places.items())]
