"""Features by this project's `embed`: Parquet tables, each shard exactly once, through Ray Data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.contenders.ours import recipe_of
from benchmarks.contenders.ours_disk import written
from benchmarks.features import MEAN, PRECISION, STD, larger_shards, weights_file
from benchmarks.work import Batch, Job
from pipeline.materialize.driver import Progress
from pipeline.recipe import parse_recipe

PASSES = False
_TIMES = 8


def batches(job: Job) -> Iterator[Batch]:
    """As many batches as the corpus has shards. Vectors lie on disk, and are read back for a check only."""

    def compute(out: str, note: Callable[[Progress], None]) -> None:
        from trainers.labelling.embed import embed

        links = Path(out).with_name("shards")
        links.mkdir()
        for copy in range(1 if job.center else _TIMES):
            for shard in larger_shards(job):
                (links / f"{copy}-{shard.name}").symlink_to(shard.resolve())
        document = recipe_of(job, actors=job.workers).model_dump(mode="json")
        document["corpus"]["shards"] = str(links)
        document["image"] |= {"mean": MEAN, "std": STD}
        network = {"name": job.network, "stem": "standard"}
        document["training"] |= {"backbone": network, "precision": dict(job.options).get(PRECISION, "float32")}
        embed(parse_recipe(document), out, weights=str(weights_file(job)), dtype="float32", progress=note)

    with closing(written(compute)) as found:
        for batch, out in found:
            yield {"vector": _first(Path(out))} if job.center else batch


def _first(out: Path) -> np.ndarray:
    """The vectors of one of the tables in a folder, float32 (n, width)."""
    table = pq.read_table(next(out.glob("*-*.parquet")))
    vectors: np.ndarray = table["vector"].combine_chunks().flatten().to_numpy()
    return vectors.reshape(len(table), -1)
