"""Labels that a network gives itself: the answers of its own classifier, balanced over all images, each shard exactly once."""

from __future__ import annotations

import io
import json
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
from pipeline.materialize.job import OnChunk, writing
from pipeline.materialize.writers import TableWriter
from pipeline.storage import join, write_atomic
from trainers.labelling.blocks import BlockPool, processor_kind
from trainers.labelling.cluster import (
    PACKAGES,
    REPORT,
    ROWS,
    FeatureJob,
    feature_arguments,
    feature_batches,
    read_array,
    read_report,
    vectors_of,
)
from trainers.labelling.kmeans import blocks_of
from trainers.labelling.network_job import table_schema
from trainers.labelling.sinkhorn import MOST_ROUNDS, SHARPNESS, TOLERANCE, balance, plan
from trainers.labelling.weights import WeightsFile
from trainers.running.runs import read_weights

VERSION = 1
OFFSETS, BALANCE = "offsets.npy", "balance.json"

_KEPT_BYTES = 2**30  # of answers in memory; more are computed in every round
_OWN = (pa.field("label", pa.int32()), pa.field("confidence", pa.float32()), pa.field("margin", pa.float32()))


def selflabel(
    features: str,
    weights: WeightsFile,
    head: str,
    out: str,
    before: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    rows: int = ROWS,
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
        progress: called after each shard.
        rows: features read at a time.
        threads: CPU threads; by default as many as this process may use.

    Returns:
        What was done, and the report, which is in the folder, too.

    Raises:
        UserError: there are no finished features, no such classifier, or the folder holds something else.
        RunError: features cannot be read, or storage refused an output; committed shards are kept.
    """
    given = feature_arguments(features, out, before, rows, threads)
    identity = {
        "version": VERSION,
        "makes": "labels",
        **given["identity"],
        "weights": weights.sha256,
        "head": head,
        "sharpness": SHARPNESS,
        "tolerance": TOLERANCE,
        "rounds": MOST_ROUNDS,
        "versions": {package: version(package) for package in PACKAGES},
        "processor": processor_kind(torch.device("cpu")),
    }
    job = SelfLabelJob(**{**given, "identity": identity}, linear=_head(weights, head))
    report = materialize(job, progress=progress, here=True)
    return report, read_report(job.out)


def _head(weights: WeightsFile, name: str) -> np.ndarray:
    """float32 (classes, width + 1): the weights of a linear classifier, and its bias behind them."""
    found = read_weights(weights.url).get("heads", {}).get(name)
    if found is None:
        raise UserError(f"{weights.url} holds no classifier {name}: it was left by a run without that task")
    return torch.cat([found["0.weight"], found["0.bias"][:, None]], 1).numpy()


@dataclass(frozen=True)
class SelfLabelJob(FeatureJob):
    """The labels of a classifier's answers.

    Args:
        linear: the classifier, as of `_head`.
    """

    linear: np.ndarray = field(kw_only=True, compare=False)

    def worker(self, threads: int, on_chunk: OnChunk | None = None) -> ShardLabeller:
        return ShardLabeller(self, on_chunk)

    def described(self) -> dict[str, Any]:
        return {"columns": [{"name": column.name, "dtype": str(column.type)} for column in _OWN]}

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
            for name in self.files:
                for batch in feature_batches(join(self.source, name), self.chunk, ["vector"]):
                    yield answers(vectors_of(batch), self.linear, pool)

        if self.corpus.samples * len(self.linear) * 4 > _KEPT_BYTES:
            return computed
        kept = list(computed())
        return lambda: kept

    def finish(self, outputs: Iterable[str]) -> tuple[str, ...]:
        """Write the report, from the tables of labels."""
        deviation = json.loads(storage.read_all(self.url(BALANCE)))["deviation"]
        found = self.told(outputs, len(self.linear), "confidence")
        classes = {"clusters": len(self.linear), "asked": len(self.linear), "deviation": deviation}
        write_json(self.url(REPORT), {**found, **classes})
        return OFFSETS, BALANCE, REPORT


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
            for batch in feature_batches(join(job.source, job.files[i]), job.chunk):
                given = plan(answers(vectors_of(batch), job.linear, self._pool), self._offsets)
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


def answers(vectors: np.ndarray, linear: np.ndarray, pool: BlockPool) -> Tensor:
    """The logarithms of a classifier's probabilities, float32 (n, classes); a row depends on no other row.

    Args:
        vectors: float32 (n, width): features.
        linear: the classifier, as of `SelfLabelJob`.
        pool: threads to compute on.
    """
    weight, bias = torch.from_numpy(linear[:, :-1]), torch.from_numpy(linear[:, -1])
    whole = blocks_of(torch.from_numpy(vectors))
    parts = pool.map(lambda block: F.log_softmax(block @ weight.T + bias, 1), whole)
    return torch.cat(list(parts))[: len(vectors)]
