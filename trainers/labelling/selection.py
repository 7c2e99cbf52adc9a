"""Chooses which labelled images a student learns from: those that the teacher is sure of, as many of each class."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import ShardError, UserError
from pipeline.materialize.commit import CommitRecord, write_json
from pipeline.materialize.driver import JobReport, Progress, materialize
from pipeline.materialize.folder import check_access
from pipeline.materialize.job import Job, OnChunk, writing
from pipeline.materialize.opened import open_materialized
from pipeline.materialize.writers import TableWriter
from pipeline.shards.corpus import Corpus
from pipeline.shards.described import SHARDS
from pipeline.storage import absolute, join, open_seekable, write_atomic
from trainers.labelling.label import LABELS, REPORT
from trainers.labelling.network_job import read_table, table_schema, tables_recipe

VERSION = 1
CUTOFFS = "cutoffs.parquet"
_GROUP = 8192  # rows in a row group
_WANTED = ["key", "id", "row", "class", "label", "confidence"]
_SCHEMA = table_schema(
    pa.field("label", pa.int32()),
    pa.field("confidence", pa.float32()),
    pa.field("keep", pa.int32()),
    pa.field("weight", pa.float32()),
)


def select(
    labels: str,
    out: str,
    least: float = 0.0,
    per_class: int | None = None,
    retry_failed: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[JobReport, dict[str, Any]]:
    """Choose images by what a teacher says of them, in this process; after an interruption the same call goes on.

    For each shard a Parquet table has the columns `key`, `id`, `row`, `class`, `label` and `confidence` of the teacher's, `keep`,
    1 or 0, and `weight`. With `per_class` a class is balanced as in Noisy Student (Xie et al. 2020): of one that has more images
    the most confident are kept, of equal ones those with the smaller id; the images of one that has fewer weigh so much more that
    all classes weigh alike (there they are repeated).

    Args:
        labels: folder that `label` has written.
        out: folder for the result, path or URL.
        least: the least confidence of an image that is kept.
        per_class: how many images of each class are kept, at most; None keeps all, and all weigh 1.
        retry_failed: try those shards again that failed in an earlier run.
        progress: called after each shard.

    Returns:
        What was done, and the report, which is in the folder, too: how many images are kept of each class, how many are below
        `least`, and how many are beyond `per_class`.

    Raises:
        UserError: there are no finished labels, a bound is none, or the folder holds something else.
        RunError: labels cannot be read, or storage refused an output; committed shards are kept.
    """
    job = selection_job(labels, out, least, per_class)
    report = materialize(job, retry_failed, progress, here=True)
    return report, json.loads(storage.read_all(job.url(REPORT)))


def selection_job(labels: str, out: str, least: float = 0.0, per_class: int | None = None) -> SelectionJob:
    """Make the job of `select`, before any output is written; arguments and errors as there."""
    check_bounds(least, per_class)
    source = open_materialized(labels, LABELS, "label", "folder of labels")
    if source.manifest["identity"].get("by") != "label":
        raise UserError(f"{source.url} holds no confidences; `pseudolabel label` makes labels that do")
    if not source.manifest["complete"]:
        failed = source.manifest["totals"]["failed"]
        raise UserError(f"{source.url}: {failed} shards failed; complete it with `pseudolabel label --retry-failed`")
    check_access(out)
    names, sizes, counts = source.outputs(0)
    corpus = Corpus(source.shards.column("shard").to_pylist(), sizes.astype(np.int64), counts.astype(np.int64))
    sums = np.array([row["outputs"][0]["sha256"].encode() for row in source.rows()], "S64")
    identity = {
        "version": VERSION,
        "makes": "selection",
        "labels": source.manifest["sha256"][SHARDS],
        "least": least,
        "per_class": per_class,
    }
    classes = tuple(source.manifest["classes"])
    return SelectionJob(source.recipe, corpus, absolute(out), identity, sums, source=source.url, files=names, classes=classes)


def check_bounds(least: float, per_class: int | None) -> None:
    """Raise UserError where arguments of `select` are none."""
    if not 0 <= least <= 1:
        raise UserError(f"--least {least}: a confidence is between 0 and 1")
    if per_class is not None and per_class < 1:
        raise UserError(f"--per-class {per_class}: at least one image of each class")


@dataclass(frozen=True)
class SelectionJob(Job):
    """The choice of labelled images: each table of labels becomes a table that says which are kept.

    Args:
        source: folder of the labels.
        files: the name of each shard's file of labels.
        classes: the names of the classes.
    """

    command = "label"
    past = "selected"
    makes = "selection"

    source: str = field(kw_only=True)
    files: list[str] = field(kw_only=True)
    classes: tuple[str, ...] = field(kw_only=True)

    def worker(self, threads: int, on_chunk: OnChunk | None = None) -> ShardSelector:
        return ShardSelector(self, on_chunk)

    def described(self) -> dict[str, Any]:
        columns = [_SCHEMA.field(name) for name in ("label", "confidence", "keep", "weight")]
        return {
            "columns": [{"name": column.name, "dtype": str(column.type)} for column in columns],
            "classes": list(self.classes),
        }

    def document(self) -> dict[str, Any]:
        return tables_recipe(self.recipe)

    def output(self, i: int) -> str:
        """The file name of shard `i`'s table."""
        return f"{self.stem(i)}.parquet"

    @cached_property
    def firsts(self) -> np.ndarray:
        """int64 (shards,): how many images the shards before each have."""
        return np.cumsum(self.corpus.counts) - self.corpus.counts

    def table(self, i: int) -> pa.Table:
        """The labels of shard `i`.

        Raises:
            ShardError: they cannot be read.
        """
        url = join(self.source, self.files[i])
        try:
            with open_seekable(url) as file:
                return pq.read_table(file, columns=_WANTED)
        except (OSError, pa.ArrowException) as error:
            raise ShardError(url, f"cannot be read: {error}") from None

    def prepare(self) -> None:
        """Find the last image that is kept of each class, unless an earlier run on the folder has."""
        with writing(self.out):
            if self.identity["per_class"] is None or storage.exists(self.url(CUTOFFS)):
                return
        best = _Ranked.empty()
        for i in range(len(self.files)):
            best = _Ranked.joined(best, _Ranked.of(self.table(i), int(self.firsts[i]), self.identity["least"]))
            best = best.most_confident(self.identity["per_class"])
        buffer = io.BytesIO()
        pq.write_table(best.cutoffs(), buffer, compression="zstd")
        with writing(self.out), write_atomic(self.url(CUTOFFS)) as file:
            file.write(buffer.getvalue())

    def finish(self, outputs: Iterable[str]) -> tuple[str, ...]:
        """Write the report, from the tables."""
        kept, beyond, below = (np.zeros(len(self.classes), np.int64) for _ in range(3))
        for name in outputs:
            table = read_table(self.url(name), ["label", "confidence", "keep"])
            labels, confidence, keep = (table.column(column).to_numpy() for column in ("label", "confidence", "keep"))
            low = confidence < np.float32(self.identity["least"])
            for counts, rows in ((kept, keep == 1), (below, low), (beyond, (keep == 0) & ~low)):
                counts += np.bincount(labels[rows], minlength=len(counts))
        sizes = {"sizes": kept.tolist(), "below": below.tolist(), "beyond": beyond.tolist()}
        write_json(self.url(REPORT), {"images": int(kept.sum()), "classes": list(self.classes), **sizes})
        return (REPORT,) if self.identity["per_class"] is None else (CUTOFFS, REPORT)


@dataclass(frozen=True)
class _Ranked:
    """Images that may be kept: their labels, confidences, ids, and places in the corpus, (n,) each."""

    label: np.ndarray
    confidence: np.ndarray
    id: np.ndarray
    place: np.ndarray

    @classmethod
    def empty(cls) -> _Ranked:
        """None."""
        return cls(np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.uint64), np.zeros(0, np.int64))

    @classmethod
    def of(cls, table: pa.Table, first: int, least: float) -> _Ranked:
        """Those of a table whose confidence is `least` or more; its first row is image `first` of the corpus."""
        label, confidence, number = (table.column(name).to_numpy() for name in ("label", "confidence", "id"))
        rows = np.flatnonzero(confidence >= np.float32(least))
        return cls(label[rows], confidence[rows], number[rows], first + rows)

    @classmethod
    def joined(cls, *parts: _Ranked) -> _Ranked:
        """All of several."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])))

    def most_confident(self, n: int) -> _Ranked:
        """The `n` most confident of each label, the label's first; of equal ones those with the smaller id, then place."""
        order = np.lexsort((self.place, self.id, -self.confidence, self.label))
        label = self.label[order]
        rank = np.arange(len(order)) - np.searchsorted(label, label)
        return _Ranked(*(column[order[rank < n]] for column in vars(self).values()))

    def cutoffs(self) -> pa.Table:
        """The last of each label, in their order, and how many there are of it: `label`, `count`, `confidence`, `id`, `place`."""
        labels, firsts, counts = np.unique(self.label, return_index=True, return_counts=True)
        last = firsts + counts - 1
        return pa.table(
            {"label": labels, "count": counts, **{name: getattr(self, name)[last] for name in ("confidence", "id", "place")}}
        )


class ShardSelector:
    """Says of the images of one shard after another which are kept.

    Args:
        job: what to select, and where to.
        on_chunk: called after each shard.
    """

    def __init__(self, job: SelectionJob, on_chunk: OnChunk | None = None) -> None:
        self._job, self._on_chunk = job, on_chunk
        self._cutoffs: dict[str, np.ndarray] | None = None
        if job.identity["per_class"] is not None:
            found = read_table(job.url(CUTOFFS), ["label", "count", "confidence", "id", "place"])
            self._cutoffs = {name: found.column(name).to_numpy() for name in found.column_names}

    def __call__(self, i: int) -> CommitRecord:
        job, labels = self._job, self._job.table(i)
        keep, weight = self._kept(labels, int(job.firsts[i]))
        made = labels.append_column("keep", pa.array(keep.astype(np.int32))).append_column("weight", pa.array(weight))
        with writing(job.out), write_atomic(job.url(job.output(i))) as file, TableWriter(file, _SCHEMA, _GROUP) as table:
            table.write(made.select(_SCHEMA.names).cast(_SCHEMA))
            table.finish()
        if self._on_chunk:
            self._on_chunk(len(labels), len(labels), [], {})
        return CommitRecord(job.shard(i), int(job.corpus.sizes[i]), int(job.corpus.counts[i]), [table.output(job.output(i))], [])

    def _kept(self, labels: pa.Table, first: int) -> tuple[np.ndarray, np.ndarray]:
        """bool (n,): which images of a shard are kept; float32 (n,): how much each weighs, 0 where it is not."""
        label, confidence, number = (labels.column(name).to_numpy() for name in ("label", "confidence", "id"))
        keep = confidence >= np.float32(self._job.identity["least"])
        weight = np.ones(len(label), np.float32)
        if (last := self._cutoffs) is not None and keep.any():
            at = np.minimum(np.searchsorted(last["label"], label), len(last["label"]) - 1)
            surer, alike = confidence > last["confidence"][at], confidence == last["confidence"][at]
            earlier = (number < last["id"][at]) | (
                (number == last["id"][at]) & (first + np.arange(len(label)) <= last["place"][at])
            )
            keep &= surer | (alike & earlier)
            weight = (self._job.identity["per_class"] / last["count"][at]).astype(np.float32)
        return keep, np.where(keep, weight, np.float32(0))
