"""Reads the features that `embed` has written: all of them, or a sample that a key chooses, a part of a table at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.draws import Draws
from pipeline.errors import ShardError, UserError
from pipeline.materialize.opened import Materialized, open_materialized
from pipeline.storage import join, open_seekable
from trainers.labelling.embed import FEATURES
from trainers.labelling.network_job import read_table


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
class FeatureTables:
    """The tables of features of a corpus.

    Args:
        url: their folder.
        files: the name of each shard's table.
        rows: features read at a time.
    """

    url: str
    files: list[str]
    rows: int

    def batches(self, i: int, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of shard `i`, some at a time.

        Raises:
            ShardError: the table cannot be read.
        """
        url = join(self.url, self.files[i])
        try:
            with open_seekable(url) as file:
                yield from pq.ParquetFile(file).iter_batches(self.rows, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise ShardError(url, f"cannot be read: {error}") from None

    def vectors(self, shards: Iterable[int] | None = None) -> Iterator[np.ndarray]:
        """All features, or those of some shards, in order, float32 (n, d) at a time; errors as of `batches`."""
        for i in range(len(self.files)) if shards is None else shards:
            yield from map(vectors_of, self.batches(i, ["vector"]))

    def chosen(self, most: int, seed: int) -> np.ndarray:
        """int64 (n, 2): shard and row of at most `most` features, those with the smallest keyed numbers, in order of these.

        Which are chosen depends on the seed and the images' ids, and fewer are the first of more. Memory holds twice `most`
        places and the ids of one table.
        """
        keys, places, more = np.zeros(0, np.uint64), np.zeros((0, 2), np.int64), 0
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for i, name in enumerate(self.files):
            ids = read_table(join(self.url, name), ["id"]).column("id").to_numpy()
            words = Draws(seed, 0, ids).stream("cluster").words("sample", 2).astype(np.uint64)
            places_here = np.stack([np.full(len(ids), i), np.arange(len(ids))], 1)
            found.append((words[:, 0] << np.uint64(32) | words[:, 1], places_here))
            more += len(ids)
            if more >= most or i == len(self.files) - 1:
                keys, places = (np.concatenate(parts) for parts in zip((keys, places), *found))
                kept = np.argsort(keys, kind="stable")[:most]
                keys, places, found, more = keys[kept], places[kept], [], 0
        return places

    def at(self, places: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The features at some places, int64 (n, 2): which of the places, and float32 (m, d), some at a time; errors as above."""
        order = np.argsort(places[:, 0], kind="stable")
        for wanted in np.split(order, np.flatnonzero(np.diff(places[order, 0])) + 1):
            start = 0
            for batch in self.batches(int(places[wanted[0], 0]), ["vector"]) if len(wanted) else ():
                here = wanted[(places[wanted, 1] >= start) & (places[wanted, 1] < start + len(batch))]
                if len(here):
                    yield here, vectors_of(batch)[places[here, 1] - start]
                start += len(batch)


def vectors_of(batch: pa.RecordBatch) -> np.ndarray:
    """float32 (n, d): the vectors of a batch of features."""
    column = batch.column("vector")
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1).astype(np.float32)
