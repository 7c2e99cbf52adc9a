"""Clusters features: centroids from a keyed sample of them, then the nearest centroid of every image, each shard exactly once."""

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
import pyarrow.parquet as pq
import torch

from pipeline import storage
from pipeline.draws import Draws
from pipeline.errors import RunError, ShardError, UserError
from pipeline.materialize.commit import CommitRecord, write_json
from pipeline.materialize.driver import JobReport, Progress, materialize
from pipeline.materialize.folder import check_access
from pipeline.materialize.job import Job, OnChunk, writing
from pipeline.materialize.opened import Materialized, open_materialized
from pipeline.materialize.publish import SHARDS
from pipeline.materialize.writers import TableWriter
from pipeline.recipe.execution import Placement
from pipeline.recipe.schema import Recipe
from pipeline.shards.corpus import Corpus
from pipeline.storage import absolute, join, open_seekable, write_atomic
from pipeline.streaming.connection import connect_ray
from trainers.labelling.blocks import BlockPool, processor_kind
from trainers.labelling.duplicates import near_duplicates
from trainers.labelling.embed import FEATURES
from trainers.labelling.information import counted_with_class, mutual_information
from trainers.labelling.kmeans import assign, kmeans
from trainers.labelling.network_job import read_table, tables_recipe

VERSION = 1
CENTROIDS, ROUNDS, REPORT, GROUPS = "centroids.npy", "rounds.json", "report.json", "groups.npy"
PER_CENTROID = 256
"""Points of the sample for each centroid, at most: more change centroids little (as in faiss)."""
ROWS = 8192
"""Features read at a time; what is written does not depend on it."""

_PACKAGES = ("pseudolabel", "numpy", "pyarrow", "torch")
_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("id", pa.uint64()),
        pa.field("row", pa.int64()),
        pa.field("class", pa.int32()),
        pa.field("label", pa.int32()),
        pa.field("distance", pa.float32()),
        pa.field("margin", pa.float32()),
    ]
)
_DUPLICATES = (pa.field("duplicate", pa.int32()), pa.field("original", pa.uint64()))


def cluster(
    features: str,
    k: int,
    out: str,
    spherical: bool = True,
    rounds: int = 20,
    seed: int = 0,
    duplicates: float | None = None,
    retry_failed: bool = False,
    progress: Callable[[Progress], None] | None = None,
    rows: int = ROWS,
    threads: int | None = None,
    actors: int = 0,
) -> tuple[JobReport, dict[str, Any]]:
    """Cluster features by k-means; after an interruption the same call goes on.

    For each shard of the corpus a Parquet table has the columns `key`, `id`, `row` in the shard, `class` where the shards have
    labels, `label`, the number of the nearest centroid, `distance` to it, and `margin`, by how much the next one is further. The
    centroids are those of a sample, chosen by `seed` and the images' ids, and are found in this process. The result does not
    depend on `rows`, `threads` and `actors`.

    Args:
        features: folder that `embed` has written.
        k: how many clusters; there are fewer if the sample has fewer distinct features.
        out: folder for the result, path or URL.
        spherical: compare directions only (by cosine), not lengths.
        rounds: of k-means, at most.
        seed: chooses the sample and the first centroids.
        duplicates: the least cosine of two near-duplicates; None looks for none. Images of one cluster that are near-duplicates,
            directly or by way of others, are a group, of which the first in the corpus is the original. The tables then have two
            more columns: `duplicate`, 0 for originals and images that are alone, else 1, and `original`, its id.
        retry_failed: try those shards again that failed in an earlier run.
        progress: called after each shard.
        rows: features read at a time.
        threads: CPU threads; by default as many as this process may use.
        actors: how many actors of Ray, of one CPU each, find each image's cluster; with 0 this process does.

    Returns:
        What was done, and the report, which is in the folder, too: sizes of the clusters, inertia over the rounds, and mutual
        information with the labels of the shards, where they have some.

    Raises:
        UserError: there are no finished features, or the folder holds something else.
        RunError: features cannot be read, or storage refused an output; committed shards are kept.
    """
    job = clustering_job(features, k, out, spherical, rounds, seed, duplicates, rows, threads, actors)
    if actors:
        connect_ray()
    report = materialize(job, retry_failed, progress, here=not actors)
    return report, json.loads(storage.read_all(job.url(REPORT)))


def clustering_job(
    features: str,
    k: int,
    out: str,
    spherical: bool = True,
    rounds: int = 20,
    seed: int = 0,
    duplicates: float | None = None,
    rows: int = ROWS,
    threads: int | None = None,
    actors: int = 0,
) -> ClusteringJob:
    """Make the job of `cluster`, before any output is written; arguments and errors as there."""
    if k < 1 or rounds < 0:
        raise UserError(f"--k {k}, --rounds {rounds}: at least one cluster, and no fewer than 0 rounds")
    if duplicates is not None and not 0 < duplicates <= 1:
        raise UserError(f"--duplicates {duplicates}: a cosine above 0 and at most 1")
    source = open_features(features)
    check_access(out)
    names, sizes, counts = source.outputs(0)
    if not counts.sum():
        raise UserError(f"{source.url} holds no features: all images are quarantined")
    corpus = Corpus(source.shards.column("shard").to_pylist(), sizes.astype(np.int64), counts.astype(np.int64))
    sums = np.array([row["outputs"][0]["sha256"].encode() for row in source.rows()], "S64")
    identity = {
        "version": VERSION,
        "makes": "labels",
        "features": source.manifest["sha256"][SHARDS],
        "k": k,
        "spherical": spherical,
        "rounds": rounds,
        "seed": seed,
        "sample": PER_CENTROID,
        "versions": {package: version(package) for package in _PACKAGES},
        "processor": processor_kind(torch.device("cpu")),
    }
    if duplicates is not None:
        identity["duplicates"] = duplicates
    threads = threads or len(os.sched_getaffinity(0))
    recipe = placed(source.recipe, actors, 1 if actors else threads)
    return ClusteringJob(recipe, corpus, absolute(out), identity, sums, rows, source=source.url, files=names, threads=threads)


def placed(recipe: Recipe, actors: int, threads: int = 1) -> Recipe:
    """The recipe of features with the actors that find clusters, at least one, and their threads."""
    return recipe.model_copy(update={"placement": Placement(actors=max(1, actors), threads=threads)})


def open_features(url: str) -> Materialized:
    """Open features that `embed` has written.

    Raises:
        UserError: there are none, they are unfinished or damaged, or some shards failed.
    """
    found = open_materialized(url, FEATURES, "embed", "folder of features")
    if not found.manifest["complete"]:
        failed = found.manifest["totals"]["failed"]
        raise UserError(f"{found.url}: {failed} shards failed; complete it with `pseudolabel embed --retry-failed`")
    return found


@dataclass(frozen=True)
class ClusteringJob(Job):
    """The assignment of features to clusters: each table of features becomes a table of labels.

    Args:
        source: folder of the features.
        files: the name of each shard's file of features.
        threads: CPU threads that find centroids; those that find clusters are the recipe's.
    """

    command = "cluster"
    past = "clustered"
    makes = "labels"

    source: str = field(kw_only=True)
    files: list[str] = field(kw_only=True)
    threads: int = field(kw_only=True)

    def worker(self, threads: int, on_chunk: OnChunk | None = None) -> ShardAssigner:
        return ShardAssigner(self, threads, on_chunk)

    def described(self) -> dict[str, Any]:
        columns = [_SCHEMA.field(name) for name in ("label", "distance", "margin")] + list(self.more)
        return {"columns": [{"name": column.name, "dtype": str(column.type)} for column in columns]}

    @property
    def more(self) -> tuple[pa.Field, ...]:
        """The columns of near-duplicates, if they are looked for."""
        return _DUPLICATES if "duplicates" in self.identity else ()

    def document(self) -> dict[str, Any]:
        return tables_recipe(self.recipe)

    def output(self, i: int) -> str:
        """The file name of shard `i`'s table."""
        return f"{self.stem(i)}.parquet"

    def prepare(self) -> None:
        """Compute the centroids, and groups of near-duplicates, unless an earlier run on the folder has."""
        for name, compute in ((CENTROIDS, self._centroids), (GROUPS, self._groups)):
            with writing(self.out):
                if storage.exists(self.url(name)) or (name == GROUPS and not self.more):
                    continue
            buffer = io.BytesIO()
            np.save(buffer, compute())
            with writing(self.out), write_atomic(self.url(name)) as file:
                file.write(buffer.getvalue())

    def _centroids(self) -> np.ndarray:
        asked = self.identity
        sample = self._sample(PER_CENTROID * asked["k"])
        found = kmeans(sample, asked["k"], asked["spherical"], asked["rounds"], asked["seed"], BlockPool(self.threads))
        about = {"sample": len(sample), "asked": asked["k"], "clusters": len(found.centroids), "split": found.split}
        with writing(self.out):
            write_json(self.url(ROUNDS), {**about, "inertia": found.inertia})
        return found.centroids

    def _groups(self) -> np.ndarray:
        """uint64 (2, n): for each image its id, and that of the original of its group."""
        pool, centroids, ids = BlockPool(self.threads), read_array(self.url(CENTROIDS)), []
        labels: list[np.ndarray] = []
        for name in self.files:
            for batch in _batches(join(self.source, name), self.chunk):
                labels.append(assign(_vectors(batch), centroids, self.identity["spherical"], pool)[0])
                ids.append(batch.column("id").to_numpy())

        def vectors() -> Iterator[np.ndarray]:
            for name in self.files:
                yield from map(_vectors, _batches(join(self.source, name), self.chunk, ["vector"]))

        own = np.concatenate(ids).astype(np.uint64)
        return np.stack([own, own[near_duplicates(np.concatenate(labels), vectors, self.identity["duplicates"], pool)]])

    def finish(self, outputs: Iterable[str]) -> tuple[str, ...]:
        """Write the report, from the tables of labels."""
        rounds = json.loads(storage.read_all(self.url(ROUNDS)))
        sizes, nearest, pairs = np.zeros(rounds["clusters"], np.int64), 0.0, np.zeros((0, 3), np.int64)
        for name in outputs:
            table = read_table(self.url(name), ["label", "distance", "class"])
            labels, classes = table.column("label").to_numpy(), table.column("class").fill_null(-1).to_numpy()
            sizes += np.bincount(labels, minlength=len(sizes))
            nearest += float(table.column("distance").to_numpy().sum(dtype=np.float64))
            pairs = counted_with_class(pairs, labels, classes)
        report = {
            "images": int(sizes.sum()),
            "clusters": rounds["clusters"],
            "asked": rounds["asked"],
            "sizes": sizes.tolist(),
            "mean_distance": nearest / max(1, int(sizes.sum())),
            "sample": rounds["sample"],
            "inertia": rounds["inertia"],
            "split": rounds["split"],
            "labels": mutual_information(pairs) if len(pairs) else None,
        }
        if self.more:
            own, originals = read_array(self.url(GROUPS))
            copies = originals[own != originals]
            groups, counts = np.unique(copies, return_counts=True)
            report["duplicates"] = {
                "groups": len(groups),
                "duplicates": len(copies),
                "largest_group": int(counts.max(initial=-1)) + 1,
            }
        write_json(self.url(REPORT), report)
        return (CENTROIDS, ROUNDS, REPORT, GROUPS) if self.more else (CENTROIDS, ROUNDS, REPORT)

    def _sample(self, most: int) -> np.ndarray:
        """float32 (n, d): the features of at most `most` images, those with the smallest keyed numbers, in order of these.

        Which images are chosen depends on the seed and their ids. Memory holds the sample, and never a whole table.
        """
        keys, places = np.zeros(0, np.uint64), np.zeros((0, 2), np.int64)
        for i, name in enumerate(self.files):
            ids = read_table(join(self.source, name), ["id"]).column("id").to_numpy()
            words = Draws(self.identity["seed"], 0, ids).stream("cluster").words("sample", 2).astype(np.uint64)
            keys = np.concatenate([keys, words[:, 0] << np.uint64(32) | words[:, 1]])
            places = np.concatenate([places, np.stack([np.full(len(ids), i), np.arange(len(ids))], 1)])
            kept = np.argsort(keys, kind="stable")[:most]
            keys, places = keys[kept], places[kept]
        sample: np.ndarray | None = None
        for i in np.unique(places[:, 0]):
            wanted = np.flatnonzero(places[:, 0] == i)
            start = 0
            for batch in _batches(join(self.source, self.files[i]), self.chunk, ["vector"]):
                inside = wanted[(places[wanted, 1] >= start) & (places[wanted, 1] < start + len(batch))]
                vectors = _vectors(batch)
                if sample is None:
                    sample = np.zeros((len(places), vectors.shape[1]), np.float32)
                sample[inside] = vectors[places[inside, 1] - start]
                start += len(batch)
        assert sample is not None
        return sample


class ShardAssigner:
    """Finds the nearest centroid of each feature of a shard, one shard after another.

    Args:
        job: what to assign, and where to.
        threads: CPU threads.
        on_chunk: called after each batch of features.
    """

    def __init__(self, job: ClusteringJob, threads: int = 1, on_chunk: OnChunk | None = None) -> None:
        self._job, self._on_chunk = job, on_chunk
        self._pool = BlockPool(threads)
        self._centroids = read_array(job.url(CENTROIDS))
        self._groups = read_array(job.url(GROUPS)) if job.more else None
        self._schema = pa.schema([*_SCHEMA, *job.more])

    def __call__(self, i: int) -> CommitRecord:
        job, schema = self._job, self._schema
        url, row = join(job.source, job.files[i]), int(job.corpus.counts[:i].sum())
        with writing(job.out), write_atomic(job.url(job.output(i))) as file, TableWriter(file, schema, ROWS) as table:
            for batch in _batches(url, job.chunk):
                found = list(assign(_vectors(batch), self._centroids, job.identity["spherical"], self._pool))
                if self._groups is not None:
                    own, originals = self._groups[:, row : row + len(batch)]
                    found += [own != originals, originals]
                row += len(batch)
                columns = [batch.column(name) for name in ("key", "id", "row", "class")]
                table.write(pa.table([*columns, *map(pa.array, found)], names=schema.names).cast(schema))
                if self._on_chunk:
                    self._on_chunk(len(batch), len(batch), [], {})
            table.finish()
        samples = int(job.corpus.counts[i])
        return CommitRecord(job.shard(i), int(job.corpus.sizes[i]), samples, [table.output(job.output(i))], [])


def read_array(url: str) -> np.ndarray:
    """An array that `prepare` has written.

    Raises:
        RunError: it cannot be read.
    """
    try:
        array: np.ndarray = np.load(io.BytesIO(storage.read_all(url)), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RunError(f"{url} cannot be read: {error}; delete it and run the same command again") from None
    return array


def _batches(url: str, rows: int, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a table of features, some at a time; ShardError where it cannot be read."""
    try:
        with open_seekable(url) as file:
            yield from pq.ParquetFile(file).iter_batches(rows, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise ShardError(url, f"cannot be read: {error}") from None


def some_vectors(job: ClusteringJob) -> np.ndarray:
    """float32 (n, d): the first features of the first table that has some, at most `job.chunk`."""
    first = int(np.flatnonzero(job.corpus.counts)[0])
    return _vectors(next(_batches(join(job.source, job.files[first]), job.chunk, ["vector"])))


def _vectors(batch: pa.RecordBatch) -> np.ndarray:
    """float32 (n, d): the vectors of a batch of features."""
    column = batch.column("vector")
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1).astype(np.float32)
