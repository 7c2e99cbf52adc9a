"""Labels that a network gives itself: the answers of its own classifier, balanced over all images, each shard exactly once."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline import storage
from pipeline.errors import UserError
from pipeline.materialize.commit import CommitRecord, write_json
from pipeline.materialize.driver import JobReport, Progress, materialize
from pipeline.materialize.folder import check_access
from pipeline.materialize.job import Job, OnChunk, writing
from pipeline.materialize.writers import TableWriter
from pipeline.shards.annotations import Annotation, tables_digest
from pipeline.shards.corpus import Corpus
from pipeline.shards.described import SHARDS
from pipeline.storage import absolute, write_atomic
from trainers.labelling.blocks import BlockPool, blocks_of, columns_of, processor_kind
from trainers.labelling.cluster import open_before
from trainers.labelling.cluster_job import BEFORE, REPORT, ROWS
from trainers.labelling.clusterings import read_array
from trainers.labelling.features import FeatureTables, open_features, vectors_of
from trainers.labelling.information import LabelComparison, counted_with_class, mutual_information
from trainers.labelling.network_job import read_table, table_schema, tables_recipe
from trainers.labelling.sinkhorn import MOST_ROUNDS, SHARPNESS, TOLERANCE, balance, plan
from trainers.labelling.weights import WeightsFile
from trainers.running.runs import read_weights

VERSION = 1
OFFSETS, BALANCE = "offsets.npy", "balance.json"

_PACKAGES = ("pseudolabel", "numpy", "pyarrow", "torch")
_KEPT_BYTES = 2**30  # of answers in memory; more are computed in every round
_OWN = (pa.field("label", pa.int32()), pa.field("confidence", pa.float32()), pa.field("margin", pa.float32()))


def selflabel(
    features: str,
    weights: WeightsFile,
    head: str,
    out: str,
    before: str | None = None,
    retry_failed: bool = False,
    progress: Callable[[Progress], None] | None = None,
    threads: int | None = None,
) -> tuple[JobReport, dict[str, Any]]:
    """Label images by the answers of a classifier on their features, so that all classes have as many images (Asano et al. 2020).

    For each shard a Parquet table has the columns `key`, `id`, `row`, `class` as in the features; `label`; `confidence`, how much
    of the image the balanced plan gives to its class; and `margin`, by how much the next class is given less.

    Args:
        features: folder that `embed` has written, of the network's feature vector.
        weights: the file of the network's weights, which holds its classifiers, too.
        head: name of the classifier there.
        out: folder for the result, path or URL.
        before: folder of labels that the same images had before, with which the report compares.
        retry_failed: try those shards again that failed in an earlier run.
        progress: called after each shard.
        threads: CPU threads; by default as many as this process may use.

    Returns:
        What was done, and the report, which is in the folder, too.

    Raises:
        UserError: there are no finished features, no such classifier, or the folder holds something else.
        RunError: features cannot be read, or storage refused an output; committed shards are kept.
    """
    source, linear = open_features(features), _head(weights, head)
    check_access(out)
    names, sizes, counts = source.outputs(0)
    if not counts.sum():
        raise UserError(f"{source.url} holds no features: all images are quarantined")
    identity = {
        "version": VERSION,
        "makes": "labels",
        "features": source.manifest["sha256"][SHARDS],
        "weights": weights.sha256,
        "head": head,
        "sharpness": SHARPNESS,
        "tolerance": TOLERANCE,
        "rounds": MOST_ROUNDS,
        "versions": {package: version(package) for package in _PACKAGES},
        "processor": processor_kind(torch.device("cpu")),
        **({} if before is None else {"before": tables_digest(BEFORE, before)}),
    }
    job = SelfLabelJob(
        source.recipe,
        Corpus(source.shards.column("shard").to_pylist(), sizes.astype(np.int64), counts.astype(np.int64)),
        absolute(out),
        identity,
        np.array([row["outputs"][0]["sha256"].encode() for row in source.rows()], "S64"),
        tables=FeatureTables(source.url, names, ROWS),
        threads=threads or len(os.sched_getaffinity(0)),
        before=None if before is None else open_before(before, source, len(linear)),
        linear=linear,
    )
    report = materialize(job, retry_failed, progress, here=True)
    return report, json.loads(storage.read_all(job.url(REPORT)))


def _head(weights: WeightsFile, name: str) -> np.ndarray:
    """float32 (classes, width + 1): the weights of a linear classifier, and its bias behind them."""
    found = read_weights(weights.url).get("heads", {}).get(name)
    if found is None:
        raise UserError(f"{weights.url} holds no classifier {name}: it was left by a run without that task")
    return torch.cat([found["0.weight"], found["0.bias"][:, None]], 1).numpy()


@dataclass(frozen=True)
class SelfLabelJob(Job):
    """The labels of a classifier's answers: each table of features becomes a table of labels.

    Args:
        tables: the features.
        threads: CPU threads.
        before: labels that the images had before, for comparison.
        linear: the classifier, as of `_head`.
    """

    command = "rounds"
    past = "labelled"
    makes = "labels"

    tables: FeatureTables = field(kw_only=True)
    threads: int = field(kw_only=True)
    before: Annotation | None = field(kw_only=True)
    linear: np.ndarray = field(kw_only=True, compare=False)

    def worker(self, threads: int, on_chunk: OnChunk | None = None) -> ShardLabeller:
        return ShardLabeller(self, on_chunk)

    def described(self) -> dict[str, Any]:
        return {"columns": [{"name": column.name, "dtype": str(column.type)} for column in _OWN]}

    def document(self) -> dict[str, Any]:
        return tables_recipe(self.recipe)

    def output(self, i: int) -> str:
        """The file name of shard `i`'s table."""
        return f"{self.stem(i)}.parquet"

    def prepare(self) -> None:
        """Balance the answers, unless an earlier run on the folder has."""
        with writing(self.out):
            if storage.exists(self.url(OFFSETS)):
                return
        offsets, errors = balance(self._blocks(), len(self.linear))
        buffer = io.BytesIO()
        np.save(buffer, offsets)
        with writing(self.out):
            write_json(self.url(BALANCE), {"deviation": errors})
            with write_atomic(self.url(OFFSETS)) as file:
                file.write(buffer.getvalue())

    def _blocks(self) -> Callable[[], Iterable[Tensor]]:
        """The answers for all images, some at a time: kept in memory where they are few, else computed each time."""
        pool = BlockPool(self.threads)

        def computed() -> Iterator[Tensor]:
            return (log_answers(vectors, self.linear, pool) for vectors in self.tables.vectors())

        if self.corpus.samples * len(self.linear) * 4 > _KEPT_BYTES:
            return computed
        kept = list(computed())
        return lambda: kept

    def finish(self, outputs: Iterable[str]) -> tuple[str, ...]:
        """Write the report, from the tables of labels."""
        classes, about = len(self.linear), json.loads(storage.read_all(self.url(BALANCE)))
        sizes, sure, by_class = np.zeros(classes, np.int64), 0.0, np.zeros((0, 3), np.int64)
        compared = (
            None if self.before is None else LabelComparison(self.before, [self.output(i) for i in range(len(self.tables.files))])
        )
        for name in outputs:
            table = read_table(self.url(name), ["id", "row", "class", "label", "confidence"])
            labels, given = table.column("label").to_numpy(), table.column("class").fill_null(-1).to_numpy()
            sizes += np.bincount(labels, minlength=classes)
            sure += float(table.column("confidence").to_numpy().sum(dtype=np.float64))
            by_class = counted_with_class(by_class, labels, given)
            if compared:
                compared.add(name, table)
        report = {
            "images": int(sizes.sum()),
            "clusters": classes,
            "asked": classes,
            "sizes": sizes.tolist(),
            "confidence": sure / max(1, int(sizes.sum())),
            **about,
            "labels": mutual_information(by_class) if len(by_class) else None,
            **({"before": compared.information()} if compared else {}),
        }
        write_json(self.url(REPORT), report)
        return OFFSETS, BALANCE, REPORT


def log_answers(vectors: np.ndarray, linear: np.ndarray, pool: BlockPool) -> Tensor:
    """The logarithms of a linear classifier's probabilities; those of a row do not depend on its place.

    Args:
        vectors: float32 (n, width).
        linear: float32 (classes, width + 1): the classifier's weights, and its bias.
        pool: threads to compute on.

    Returns:
        float32 (n, classes).
    """
    weights, bias = columns_of(torch.from_numpy(linear[:, :-1])), torch.from_numpy(linear[:, -1])
    parts = pool.map(
        lambda block: F.log_softmax((block @ weights)[:, : len(bias)] + bias, 1), blocks_of(torch.from_numpy(vectors))
    )
    return torch.cat(list(parts))[: len(vectors)] if len(vectors) else torch.zeros(0, len(bias))


class ShardLabeller:
    """Labels the images of a shard by the balanced answers, one shard after another.

    Args:
        job: what to label, and where to.
        on_chunk: called after each batch of features.
    """

    def __init__(self, job: SelfLabelJob, on_chunk: OnChunk | None = None) -> None:
        self._job, self._on_chunk = job, on_chunk
        self._pool = BlockPool(job.threads)
        self._offsets = torch.from_numpy(read_array(job.url(OFFSETS)))
        self._schema = table_schema(*_OWN)

    def __call__(self, i: int) -> CommitRecord:
        job, schema = self._job, self._schema
        with writing(job.out), write_atomic(job.url(job.output(i))) as file, TableWriter(file, schema, ROWS) as table:
            for batch in job.tables.batches(i):
                given = plan(log_answers(vectors_of(batch), job.linear, self._pool), self._offsets)
                best, label = given.max(1)
                margin = best - given.scatter(1, label[:, None], -1.0).amax(1)
                columns = [batch.column(name) for name in ("key", "id", "row", "class")]
                own = [pa.array(part.numpy()) for part in (label, best, margin)]
                table.write(pa.table([*columns, *own], names=schema.names).cast(schema))
                if self._on_chunk:
                    self._on_chunk(len(batch), len(batch), [], {})
            table.finish()
        samples = int(job.corpus.counts[i])
        return CommitRecord(job.shard(i), int(job.corpus.sizes[i]), samples, [table.output(job.output(i))], [])
