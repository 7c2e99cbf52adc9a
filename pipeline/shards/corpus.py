"""An open corpus: its shards, the number of samples in each, and their bytes by (shard, row)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any, Literal

import numpy as np

from pipeline.draws import sample_id
from pipeline.errors import ShardError, UserError
from pipeline.ordering.mixture import Portion
from pipeline.shards.annotations import Annotation
from pipeline.shards.members import Members, sidecar_in
from pipeline.shards.remarks import unread_labels
from pipeline.shards.scanning import LABEL, load_or_scan, read_label, scan
from pipeline.storage import read_ranges, without_secrets
from pipeline.storage import size as size_of

_GAP = 64 * 2**10  # reading so many bytes in vain is cheaper than another request
_RANGE = 16 * 2**20  # larger ranges are cut, so that remote storage can send the pieces at the same time
CACHED_SHARDS = 256  # as many as one batch may draw from

_Name = tuple[int, str]  # of a member: the place of its sample in the request, and its extension


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample as it lies in its shard.

    Args:
        key: its name in the corpus.
        id: the hash of the key and of the prefix from `Corpus.prefix`, see `pipeline.draws.sample_id`.
        encoded: the image file's bytes, or those of its frames after each other; empty where there is a problem.
        ext: the image's extension.
        label: class number, -1 where there is none.
        problem: why the sample cannot be used, or None.
        sizes: bytes of each frame where there are several.
        annotations: its labels by the annotations of the corpus, in their order; -1 where it has none.
        weights: how much each of these labels counts.
        target: the bytes of the member that holds its target, see `Corpus.target`; empty where there is none.
    """

    key: str
    id: int
    encoded: memoryview | bytes
    ext: str
    label: int
    problem: str | None
    sizes: Sequence[int] = ()
    annotations: Sequence[int] = ()
    weights: Sequence[float] = ()
    target: memoryview | bytes = b""

    def files(self) -> list[memoryview]:
        """The bytes of its image, or of each of its frames."""
        whole = memoryview(self.encoded)
        if not self.sizes:
            return [whole]
        return [whole[end - size : end] for size, end in zip(self.sizes, accumulate(self.sizes))]


@dataclass(frozen=True, eq=False)
class Corpus:
    """Shards in the order given and their samples in the order of each shard; cheap to pickle. Made by `open_corpus`.

    Args:
        urls: the shards.
        sizes: int64 (shards,): bytes of each.
        counts: int64 (shards,): samples of each.
        classes: the names that the labels stand for, where they are known.
        numbers: the number that stands for each of the classes in masks and boxes; None where they are 0, 1, 2, ...
        image: extension of the image wanted where a sample has several.
        frames: how many images of each sample are frames, or None for one image.
        damaged: shards that cannot be read: the reason, by place in `urls`; they count no samples.
        scanned: shards that no file beside them describes: their digest, by place.
        index: folder of files that describe these, if there is one.
        disagreement: why the labels are of no use (folders with different classes), in which case they are -1; else None.
        portions: the corpora of a mixture, whose shards follow each other; none for a single corpus. Equal keys of two corpora
        have different ids.
        keys: what an id is computed from: the sample's key (`name`), or the name of its shard and its key (`shard`).
        annotations: labels of the samples in tables beside the shards.
        kept: the tables by which the samples were chosen, against which those that are read are compared.
        target: extension of the member to read with each image, such as `seg.png`; None reads none.
        versions: integers (shards,): another number where a shard has been written anew under its name, in as many bytes or not;
        None where a name stands for the same bytes always.
        hidden: place of the first shard whose labels are hidden, see `pipeline.shards.label_share`; None hides none.
    """

    urls: list[str]
    sizes: np.ndarray
    counts: np.ndarray
    classes: list[str] | None = None
    numbers: list[int] | None = None
    image: str | None = None
    frames: int | None = None
    damaged: dict[int, str] = field(default_factory=dict)
    scanned: dict[int, str] = field(default_factory=dict)
    index: str | None = None
    disagreement: str | None = None
    portions: tuple[Portion, ...] = ()
    keys: Literal["name", "shard"] = "name"
    annotations: tuple[Annotation, ...] = ()
    kept: Annotation | None = None
    target: str | None = None
    versions: np.ndarray | None = None
    hidden: int | None = None
    _chosen: tuple[np.ndarray, np.ndarray] | None = None  # rows of all shards, one after the other, and the start of each

    @property
    def samples(self) -> int:
        """Samples of all shards."""
        return int(self.counts.sum())

    def portion(self, i: int) -> int | None:
        """Which corpus of a mixture shard `i` belongs to."""
        if not self.portions:
            return None
        return int(np.searchsorted(np.cumsum([portion.shards for portion in self.portions]), i, side="right"))

    def shard_name(self, i: int) -> str:
        """The name of shard `i`: its path below the folder that all shards share, those of its corpus in a mixture."""
        return without_secrets(self.urls[i])[self._roots[self.portion(i) or 0] :]

    @cached_property
    def _roots(self) -> list[int]:
        ends = np.cumsum([portion.shards for portion in self.portions]).tolist() or [len(self.urls)]
        return [common_folder(self.urls[start:end]) for start, end in zip([0, *ends], ends)]

    def prefix(self, i: int) -> str:
        """The prefix of the keys of shard `i`, for computing its samples' ids."""
        portion = self.portion(i)
        corpus = "" if portion is None or self.hidden is not None else f"{self.portions[portion].name}/"
        return f"{corpus}{self.shard_name(i)}/" if self.keys == "shard" else corpus

    def members(self, i: int) -> Members:
        """The index of shard `i`, with `counts[i]` rows.

        Raises:
            ShardError: the shard is gone, damaged, or holds another number of samples than its index said.
        """
        members = self._all_members(i)
        chosen = self.rows_in_shard(i)
        return members if chosen is None else members.take(chosen)

    def forget_members(self) -> None:
        """Drop the cached indices of shards; a single pass over a corpus does not need them again."""
        _cached_members.cache_clear()

    def labels(self, i: int) -> np.ndarray:
        """int64 (counts[i],): the labels of shard `i`, -1 where there is none; errors as in `members`."""
        labels = self.members(i).labels
        return labels if self._shows_labels(i) else np.full_like(labels, -1)

    def _shows_labels(self, i: int) -> bool:
        return self.disagreement is None and (self.hidden is None or i < self.hidden)

    def unread_labels(self, i: int) -> list[str]:
        """Samples of shard `i` whose `cls` is no class number, each as its key and its `cls`; errors as in `read`."""
        members = self.members(i)
        wanted = [(part.offset, min(part.size, LABEL), (row, "cls")) for row, part in unread_labels(members)]
        texts = {row: read_label(bytes(text))[1] for (row, _), text in self._read(i, wanted).items()}
        return [f"{members.keys[row]} ({text})" for row, text in sorted(texts.items()) if text]

    def read(self, i: int, rows: np.ndarray | Sequence[int]) -> list[Sample]:
        """Samples of shard `i`, in the order of `rows`; members near each other are read in one request.

        Args:
            i: the shard's place in `urls`.
            rows: each from 0 to counts[i] - 1.

        Raises:
            ShardError: the shard is gone, shorter than its index says, or cannot be read.
        """
        return [sample for sample, _ in self._samples(i, rows, whole=False)]

    def read_members(self, i: int, rows: np.ndarray | Sequence[int]) -> list[tuple[Sample, dict[str, memoryview]]]:
        """Samples as `read` gives them, each with the bytes of all its members by extension (of two alike the first).

        The image of a sample with a problem is among them too, if it has one; arguments and errors as in `read`.
        """
        return self._samples(i, rows, whole=True)

    def _samples(self, i: int, rows: np.ndarray | Sequence[int], whole: bool) -> list[tuple[Sample, dict[str, memoryview]]]:
        chosen, prefix = self.rows_in_shard(i), self.prefix(i)
        places = np.asarray(rows, np.int64)
        members = self._all_members(i).take(places if chosen is None else chosen[places])
        labels = members.labels if self._shows_labels(i) else np.full(len(members), -1)
        also = ["others"] if whole or self.frames or self.target else []
        samples = members.table.select(["key", "ext", "offset", "size", "problem", *also]).to_pylist()
        wanted: list[tuple[int, int, tuple[int, str]]] = []
        for n, row in enumerate(samples):
            others = row.get("others", [])
            frames = others[: (self.frames or 1) - 1]
            row["frames"] = [row["ext"], *(part["ext"] for part in frames)]
            if row["ext"] and (whole or row["problem"] is None):
                wanted.append((row["offset"], row["size"], (n, row["ext"])))
            taken = {row["ext"]}
            targets = [part for part in others if part["ext"] == self.target and row["problem"] is None]
            row["target"] = self.target
            for part in others if whole else [*frames, *targets]:
                if part["ext"] not in taken:
                    taken.add(part["ext"])
                    wanted.append((part["offset"], part["size"], (n, part["ext"])))
        read: list[dict[str, memoryview]] = [{} for _ in samples]
        for (n, ext), data in self._read(i, wanted).items():
            read[n][ext] = data
        ids = [sample_id(prefix + row["key"]) for row in samples]
        own = places if chosen is None else chosen[places]
        if self.kept is not None:
            self.kept.known(i, own, ids)
        found = [annotation.known(i, own, ids) for annotation in self.annotations]
        known, weights = (list(zip(*(both[n] for both in found))) or [()] * len(samples) for n in (0, 1))
        return [
            (_sample(row, number, int(label), parts, *of_row), parts)
            for row, number, label, parts, *of_row in zip(samples, ids, labels, read, known, weights)
        ]

    def names_of(self, ids: np.ndarray | Sequence[int]) -> list[tuple[str, str]]:
        """The file of each sample, by its id: the shard's URL, and the name of the image's member there.

        Args:
            ids: uint64 (n,), as in the column `id` of batches and tables.

        Raises:
            UserError: no sample has one of these ids.
            ShardError: a shard is gone or damaged.
        """
        found: dict[int, tuple[str, str]] = {}
        wanted = {int(number) for number in ids}
        for i in np.flatnonzero(self.counts):
            if len(found) == len(wanted):
                break
            table, prefix = self.members(int(i)).table, self.prefix(int(i))
            for key, ext in zip(table.column("key").to_pylist(), table.column("ext").to_pylist()):
                if (number := sample_id(prefix + key)) in wanted:
                    found.setdefault(number, (without_secrets(self.urls[i]), f"{key}.{ext}" if ext else key))
        if missing := wanted - found.keys():
            raise UserError(
                f"no sample of this corpus has the id {min(missing)}: are these ids of other shards, or of other `keys`?"
            )
        return [found[int(number)] for number in ids]

    def rows_with(self, ids: np.ndarray) -> list[np.ndarray]:
        """The rows of each shard whose samples have one of these ids, uint64 (n,).

        Raises:
            ShardError: a shard is gone or damaged.
        """
        wanted = {int(number) for number in ids}
        rows = []
        for i, count in enumerate(self.counts):
            keys, prefix = self.members(i).keys if count else [], self.prefix(i)
            rows.append(np.array([row for row, key in enumerate(keys) if sample_id(prefix + key) in wanted], np.int64))
        return rows

    def rows_of(self, numbers: np.ndarray) -> list[np.ndarray]:
        """The rows of each shard that samples of these numbers are; the whole corpus is numbered from 0, in order.

        Args:
            numbers: int64 (n,), ascending.
        """
        ends = np.cumsum(self.counts)
        return [part - start for part, start in zip(np.split(numbers, np.searchsorted(numbers, ends[:-1])), ends - self.counts)]

    def select(self, rows_per_shard: Sequence[np.ndarray]) -> Corpus:
        """A view of the same shards with only these rows of each, in the order given."""
        if len(rows_per_shard) != len(self.urls):
            raise ValueError(f"rows for {len(rows_per_shard)} shards; the corpus has {len(self.urls)}")
        counts = np.array([len(rows) for rows in rows_per_shard], np.int64)
        bases = (self.rows_in_shard(i) for i in range(len(self.urls)))
        kept = [np.asarray(rows, np.int64) if base is None else base[rows] for base, rows in zip(bases, rows_per_shard)]
        flat = np.concatenate(kept) if kept else np.empty(0, np.int64)
        return replace(self, counts=counts, _chosen=(flat.astype(np.int32), np.concatenate([[0], np.cumsum(counts)])))

    def in_two_parts(self, first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> Corpus:
        """A view in which each shard comes twice: all of them with the rows of `first`, then all with those of `second`."""
        n = len(self.urls)
        twice = replace(
            self,
            urls=self.urls * 2,
            sizes=np.tile(self.sizes, 2),
            damaged=self.damaged | {n + i: reason for i, reason in self.damaged.items()},
            scanned=self.scanned | {n + i: digest for i, digest in self.scanned.items()},
            versions=None if self.versions is None else np.tile(self.versions, 2),
            kept=self.kept and replace(self.kept, files=self.kept.files * 2),
            _chosen=None,
        )
        chosen = [self.rows_in_shard(i) for i in range(n)] * 2
        return twice.select([own if base is None else base[own] for base, own in zip(chosen, [*first, *second])])

    def row(self, i: int, row: int) -> int:
        """The row in the shard itself of row `row` of shard `i`; they differ where the corpus is a view."""
        chosen = self.rows_in_shard(i)
        return row if chosen is None else int(chosen[row])

    def rows_in_shard(self, i: int) -> np.ndarray | None:
        """`row` of every row of shard `i`; None where all are there, in their order."""
        if self._chosen is None:
            return None
        rows, starts = self._chosen
        return rows[starts[i] : starts[i + 1]]

    def _all_members(self, i: int) -> Members:
        if i in self.damaged:
            raise ShardError(self.urls[i], self.damaged[i])
        samples = int(self.counts[i]) if self._chosen is None else None
        version = 0 if self.versions is None else int(self.versions[i])
        members = _cached_members(
            self.urls[i], version, int(self.sizes[i]), self.image, self.frames, samples, i not in self.scanned, self.index
        )
        if members.shard_bytes != self.sizes[i] or (self._chosen is None and len(members) != self.counts[i]):
            raise ShardError(
                self.urls[i],
                f"has changed since the corpus was opened: {len(members)} samples in {members.shard_bytes} bytes now, "
                f"{self.counts[i]} in {self.sizes[i]} then; open it again",
            )
        return members

    def _read(self, i: int, wanted: list[tuple[int, int, _Name]]) -> dict[_Name, memoryview]:
        """Read the ranges (start, length, name); their bytes by name."""
        ranges: list[tuple[int, int]] = []
        place: dict[_Name, int] = {}  # name -> its range
        for start, length, n in sorted(wanted):
            if ranges and start - ranges[-1][1] <= _GAP and start + length - ranges[-1][0] <= _RANGE:
                ranges[-1] = (ranges[-1][0], max(ranges[-1][1], start + length))
            else:
                ranges.append((start, start + length))
            place[n] = len(ranges) - 1
        url = self.urls[i]
        try:
            buffers = [memoryview(buffer) for buffer in read_ranges(url, ranges)] if ranges else []
        except OSError as error:
            raise ShardError(url, self._changed(i) or f"cannot be read: {str(error).removeprefix(url + ': ')}") from None
        if any(len(buffer) < end - start for buffer, (start, end) in zip(buffers, ranges)):
            raise ShardError(url, self._changed(i) or "ends before its last sample")
        return {n: buffers[place[n]][start - ranges[place[n]][0] :][:length] for start, length, n in wanted}

    def _changed(self, i: int) -> str | None:
        try:
            now = size_of(self.urls[i])
        except FileNotFoundError:
            return "is gone since the corpus was opened"
        except OSError:
            return None
        return (
            None
            if now == self.sizes[i]
            else f"has {now} bytes, {self.sizes[i]} by its index: it was cut or replaced; open the corpus again"
        )


def common_folder(urls: list[str]) -> int:
    """The number of leading characters of each URL (without its secrets) that name the folder which all of them share."""
    if not urls:
        return 0
    plain = [without_secrets(url) for url in urls]
    low, high = min(plain), max(plain)
    same = next((n for n, (a, b) in enumerate(zip(low, high)) if a != b), min(len(low), len(high)))
    return low.rfind("/", 0, same) + 1


def _sample(
    row: dict[str, Any],
    number: int,
    label: int,
    parts: dict[str, memoryview],
    annotations: Sequence[int],
    weights: Sequence[float],
) -> Sample:
    """Make a sample of its row, whose `frames` are the extensions of its images, and the bytes of its members."""
    files: list[memoryview] = [parts[ext] for ext in row["frames"]] if row["problem"] is None else []
    encoded = files[0] if len(files) == 1 else b"".join(files)
    sizes = [len(file) for file in files] if len(files) > 1 else ()
    target = parts.get(row["target"], b"")
    return Sample(row["key"], number, encoded, row["ext"], label, row["problem"], sizes, annotations, weights, target)


@lru_cache(maxsize=CACHED_SHARDS)
def _cached_members(
    url: str,
    version: int,
    shard_bytes: int,
    image: str | None,
    frames: int | None,
    samples: int | None,
    beside: bool,
    index: str | None,
) -> Members:
    place = None if beside or not index else sidecar_in(index, url)
    members = load_or_scan(url, shard_bytes, samples=samples, beside=place)[0] if beside or place else scan(url)
    if frames:
        return members.clips(frames, image)
    return members.preferring(image) if image else members
