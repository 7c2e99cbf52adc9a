"""The job of `cluster`: centroids from a keyed sample of features, then the nearest one of every image, shard by shard."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.materialize.commit import CommitRecord, write_json
from pipeline.materialize.job import Job, OnChunk, writing
from pipeline.materialize.writers import TableWriter
from pipeline.shards.annotations import NO_LABEL, Annotation
from pipeline.storage import join, write_atomic
from trainers.labelling.blocks import BlockPool
from trainers.labelling.clusterings import CENTROIDS, COARSE, PCA, ROUNDS, ClusterTally, FeatureView, numbered
from trainers.labelling.duplicates import near_duplicates
from trainers.labelling.features import FeatureTables, vectors_of
from trainers.labelling.hierarchy import together, two_levels
from trainers.labelling.information import LabelComparison
from trainers.labelling.kmeans import kmeans
from trainers.labelling.network_job import read_table, tables_recipe
from trainers.labelling.pca import components

REPORT, PCA_ABOUT, GROUPS = "report.json", "pca.json", "groups.parquet"
BEFORE = "--before"
PER_CENTROID = 256
"""Points of the sample for each centroid, at most: more change centroids little (as in faiss)."""
PER_PCA = 65_536
"""Points of which principal components are computed, at most."""
ROWS = 8192
"""Features read at a time; what is written does not depend on it."""

_NAMES = (pa.field("key", pa.string()), pa.field("id", pa.uint64()), pa.field("row", pa.int64()), pa.field("class", pa.int32()))
_FOUND = (("label", pa.int32()), ("distance", pa.float32()), ("margin", pa.float32()))
_DUPLICATES = (pa.field("duplicate", pa.int32()), pa.field("original", pa.uint64()))


@dataclass(frozen=True)
class ClusteringJob(Job):
    """The assignment of features to clusters: each table of features becomes a table of labels.

    Args:
        tables: the features.
        threads: CPU threads that find centroids; those that find clusters are the recipe's.
        before: labels of an earlier clustering, whose numbers clusters keep.
    """

    command = "cluster"
    past = "clustered"
    makes = "labels"

    tables: FeatureTables = field(kw_only=True)
    threads: int = field(kw_only=True)
    before: Annotation | None = field(kw_only=True)

    def worker(self, threads: int, on_chunk: OnChunk | None = None) -> ShardAssigner:
        return ShardAssigner(self, threads, on_chunk)

    def described(self) -> dict[str, Any]:
        names = {column.name for column in _NAMES}
        return {"columns": [{"name": each.name, "dtype": str(each.type)} for each in self.schema if each.name not in names]}

    @property
    def numbers(self) -> list[int]:
        """How many clusters each clustering has been asked for."""
        k = self.identity["k"]
        return k if isinstance(k, list) else [k]

    @property
    def found(self) -> list[pa.Field]:
        """The columns of all clusterings."""
        return [pa.field(numbered(name, n), kind) for n in range(len(self.numbers)) for name, kind in _FOUND]

    @property
    def schema(self) -> pa.Schema:
        """The schema of the tables of labels."""
        return pa.schema([*_NAMES, *self.found, *(_DUPLICATES if "duplicates" in self.identity else ())])

    @cached_property
    def width(self) -> int:
        """How many numbers a feature has."""
        return next(self.tables.vectors(np.flatnonzero(self.corpus.counts)[:1].tolist())).shape[1]

    def document(self) -> dict[str, Any]:
        return tables_recipe(self.recipe)

    def output(self, i: int) -> str:
        """The file name of shard `i`'s table."""
        return f"{self.stem(i)}.parquet"

    def prepare(self) -> None:
        """Compute the components, the centroids and the groups of near-duplicates, unless an earlier run on the folder has."""
        pool = BlockPool(self.threads)
        missing = [n for n in range(len(self.numbers)) if not self._there(numbered(CENTROIDS, n))]
        if missing:
            asked, sample = self.identity, PER_CENTROID * max(self.numbers)
            places = self.tables.chosen(max(sample, PER_PCA if "pca" in asked else 0), asked["seed"])
            if "pca" in asked and not self._there(PCA):
                self._components(places[:PER_PCA], pool)
            self._centroids(missing, places[:sample], pool)
        if "duplicates" in self.identity and not self._there(GROUPS):
            self._groups(pool)

    def _there(self, name: str) -> bool:
        with writing(self.out):
            return storage.exists(self.url(name))

    def _components(self, places: np.ndarray, pool: BlockPool) -> None:
        asked = self.identity["pca"]
        found = components(
            together(lambda _: self.tables.at(places), np.arange(len(places))), asked["components"], asked["whiten"], pool
        )
        about = {"components": found.width, "asked": asked["components"], "whitened": asked["whiten"]}
        with writing(self.out):
            write_json(self.url(PCA_ABOUT), {**about, "variance": found.share, "sample": len(places)})
        self._save(PCA, found.table)

    def _centroids(self, missing: list[int], places: np.ndarray, pool: BlockPool) -> None:
        """The centroids of some clusterings; `places` are the sample of the largest, read once for all that have one level."""
        asked, levels = self.identity, self.identity["levels"]
        view = FeatureView.of(self.out, asked, pool, clusterings=False)
        most = max((self.numbers[n] for n in missing if levels[n] == 1), default=0)

        def read(numbers: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            return ((which, view(x)) for which, x in self.tables.at(places[numbers]))

        points = together(read, np.arange(min(len(places), PER_CENTROID * most))) if most else None
        for n in missing:
            k, seed = self.numbers[n], asked["seed"] + self.numbers[:n].count(self.numbers[n])
            sample = min(len(places), PER_CENTROID * k)
            about: dict[str, Any] = {}
            if levels[n] == 1:
                assert points is not None
                before = self._numbers_before(places[:sample])
                found = kmeans(points[:sample], k, asked["spherical"], asked["rounds"], seed, pool, before)
            else:
                how = (k, asked["spherical"], asked["rounds"], seed, pool, PER_CENTROID)
                found, coarse, sizes = two_levels(read, sample, *how)
                self._save(numbered(COARSE, n), coarse.centroids)
                about = {"coarse": {"inertia": coarse.inertia, "clusters": sizes.tolist()}}
            about |= {"sample": sample, "asked": k, "clusters": len(found.centroids), "split": found.split}
            with writing(self.out):
                write_json(self.url(numbered(ROUNDS, n)), {**about, "inertia": found.inertia})
            self._save(numbered(CENTROIDS, n), found.centroids)

    def _numbers_before(self, places: np.ndarray) -> np.ndarray | None:
        """int64 (n,): the label that images had before, by their places as of `tables`; None if there was no clustering."""
        if self.before is None:
            return None
        found = np.full(len(places), NO_LABEL, np.int64)
        for i in np.unique(places[:, 0]):
            names = read_table(join(self.tables.url, self.tables.files[i]), ["row", "id"])
            wanted = np.flatnonzero(places[:, 0] == i)
            rows, ids = (names.column(name).to_numpy()[places[wanted, 1]] for name in ("row", "id"))
            found[wanted], _ = self.before.known(int(i), rows, ids.tolist())
        return found

    def _save(self, name: str, array: np.ndarray) -> None:
        buffer = io.BytesIO()
        np.save(buffer, array)
        with writing(self.out), write_atomic(self.url(name)) as file:
            file.write(buffer.getvalue())

    def _groups(self, pool: BlockPool) -> None:
        """Write what is found of each image, its id, and that of the original of its group: shards take their rows of it."""
        view, parts = FeatureView.of(self.out, self.identity, pool), []
        for i in range(len(self.tables.files)):
            for batch in self.tables.batches(i, ["id", "vector"]):
                parts.append(pa.table([batch.column("id"), *view.found(vectors_of(batch))], names=self._grouped[:-1]))
        table = pa.concat_tables(parts).combine_chunks()
        labels, own = table.column("label").to_numpy(), table.column("id").to_numpy()
        first = near_duplicates(labels, self.tables.vectors, self.identity["duplicates"], pool)
        with writing(self.out), write_atomic(self.url(GROUPS)) as file:
            pq.write_table(table.append_column(self._grouped[-1], pa.array(own[first])), file, compression="zstd")

    @property
    def _grouped(self) -> list[str]:
        return ["id", *(column.name for column in self.found), "original"]

    def finish(self, outputs: Iterable[str]) -> tuple[str, ...]:
        """Write the report, from the tables of labels."""
        files = [name for n in range(len(self.numbers)) for name in self._files(n)]
        tallies = [ClusterTally(n, json.loads(storage.read_all(self.url(numbered(ROUNDS, n))))) for n in range(len(self.numbers))]
        compared = (
            None if self.before is None else LabelComparison(self.before, [self.output(i) for i in range(len(self.tables.files))])
        )
        for name in outputs:
            table = read_table(self.url(name), ["id", "row", "class", *(column.name for column in self.found)])
            for tally in tallies:
                tally.add(table)
            if compared:
                compared.add(name, table)
        report, *more = (tally.report() for tally in tallies)
        if compared:
            report["before"] = compared.information()
        if more:
            report["more"] = more
        if "pca" in self.identity:
            report["pca"] = json.loads(storage.read_all(self.url(PCA_ABOUT)))
            files += [PCA, PCA_ABOUT]
        if "duplicates" in self.identity:
            grouped = read_table(self.url(GROUPS), ["id", "original"])
            own, originals = (grouped.column(name).to_numpy() for name in ("id", "original"))
            copies = originals[own != originals]
            groups, counts = np.unique(copies, return_counts=True)
            report["duplicates"] = {
                "groups": len(groups),
                "duplicates": len(copies),
                "largest_group": int(counts.max(initial=-1)) + 1,
            }
            files.append(GROUPS)
        write_json(self.url(REPORT), report)
        return (*files, REPORT)

    def _files(self, n: int) -> list[str]:
        names = (CENTROIDS, COARSE, ROUNDS) if self.identity["levels"][n] == 2 else (CENTROIDS, ROUNDS)
        return [numbered(name, n) for name in names]


class ShardAssigner:
    """Finds the nearest centroid of each feature of a shard, one shard after another.

    Args:
        job: what to assign, and where to.
        threads: CPU threads.
        on_chunk: called after each batch of features.
    """

    def __init__(self, job: ClusteringJob, threads: int = 1, on_chunk: OnChunk | None = None) -> None:
        self._job, self._on_chunk = job, on_chunk
        self._view = FeatureView.of(job.out, job.identity, BlockPool(threads))
        grouped = "duplicates" in job.identity
        self._known = read_table(job.url(GROUPS), job._grouped).combine_chunks() if grouped else None

    def __call__(self, i: int) -> CommitRecord:
        job, schema = self._job, self._job.schema
        row = int(job.corpus.counts[:i].sum())
        with writing(job.out), write_atomic(job.url(job.output(i))) as file, TableWriter(file, schema, ROWS) as table:
            for batch in job.tables.batches(i, None if self._known is None else [column.name for column in _NAMES]):
                columns = [batch.column(column.name) for column in _NAMES]
                if self._known is None:
                    columns += map(pa.array, self._view.found(vectors_of(batch)))
                else:
                    known = self._known.slice(row, len(batch)).combine_chunks()
                    columns += known.select([column.name for column in job.found]).columns
                    columns += [
                        pa.array(known.column("id").to_numpy() != known.column("original").to_numpy()),
                        known.column("original"),
                    ]
                row += len(batch)
                table.write(pa.table(columns, names=schema.names).cast(schema))
                if self._on_chunk:
                    self._on_chunk(len(batch), len(batch), [], {})
            table.finish()
        samples = int(job.corpus.counts[i])
        return CommitRecord(job.shard(i), int(job.corpus.sizes[i]), samples, [table.output(job.output(i))], [])
