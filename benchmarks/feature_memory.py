"""Measures the memory of `embed` by the size of a shard and of the corpus, and that of `cluster` by the number of features.

    python -m benchmarks.feature_memory FOLDER [--samples 500] [--features 2000000] [--width 64] [--k 256]

FOLDER is emptied and used. Features are computed of one shard of so many photos, of one of ten times as many, and of ten shards
of so many, by a ResNet-18 with random weights at 64 pixels. Then random features are clustered: a tenth of them, and all. Each is
done in a process of its own, which tells its peak and its seconds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.render_memory import make_shard, peak
from pipeline.materialize.commit import CommitRecord
from pipeline.materialize.driver import materialize
from pipeline.materialize.job import Job, OnChunk
from pipeline.materialize.writers import TableWriter
from pipeline.recipe import Recipe, parse_recipe
from pipeline.shards.corpus import Corpus
from pipeline.storage import write_atomic

_A_SHARD = 20_000


def recipe_of(shards: str) -> Recipe:
    """The recipe of features."""
    training = {"backbone": {"name": "resnet18", "stem": "standard"}, "precision": "float32"}
    return parse_recipe({"name": "memory", "seed": 1, "corpus": {"shards": shards}, "image": {"size": 64}, "training": training})


@dataclass(frozen=True)
class RandomFeatures(Job):
    """Tables as `embed` writes them, with random directions around a thousand centres."""

    command = "embed"
    past = "made"
    makes = "features"

    def worker(self, threads: int, on_chunk: OnChunk | None = None) -> Any:
        return self._make

    def described(self) -> dict[str, Any]:
        return {"columns": [{"name": "vector", "dtype": "float16"}]}

    def _make(self, i: int) -> CommitRecord:
        from trainers.labelling.embed import feature_schema

        width, rows = self.identity["width"], int(self.corpus.counts[i])
        schema, name = feature_schema(width, "float16"), f"{self.stem(i)}.parquet"
        centres = np.random.default_rng(0).normal(size=(1000, width))
        rng = np.random.default_rng([1, i])
        vectors = (centres[rng.integers(1000, size=rows)] + 0.5 * rng.normal(size=(rows, width))).astype(np.float16)
        ids = np.arange(rows, dtype=np.uint64) + np.uint64(i * _A_SHARD)
        columns = {
            "key": [f"{n:06d}" for n in range(rows)],
            "id": ids,
            "row": np.arange(rows),
            "class": pa.nulls(rows, pa.int32()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=schema.field("vector").type),
        }
        with write_atomic(self.url(name)) as file, TableWriter(file, schema, 1024) as table:
            table.write(pa.table(columns, schema=schema))
            table.finish()
        return CommitRecord(self.shard(i), int(self.corpus.sizes[i]), rows, [table.output(name)], [])


def make_features(out: str, count: int, width: int) -> dict[str, float]:
    """Write random features."""
    shards = count // _A_SHARD
    counts = np.full(shards, _A_SHARD, np.int64)
    corpus = Corpus([f"/shards/{i:06d}.tar" for i in range(shards)], counts * width, counts)
    identity = {"makes": "features", "width": width}
    materialize(RandomFeatures(recipe_of("/shards"), corpus, out, identity, np.full(shards, b"", "S64")), here=True)
    return {}


def embed_shards(shards: str, out: str, weights: str) -> dict[str, float]:
    """Compute features in this process."""
    from trainers.labelling.embed import embed

    started = time.perf_counter()
    report = embed(recipe_of(shards), out, weights=weights, here=True)
    return {"seconds": time.perf_counter() - started, "peak": peak(), "rows": report.rows}


def cluster_features(features: str, out: str, k: str) -> dict[str, float]:
    """Cluster in this process; `assigning` are the seconds from the first shard that is done to the last."""
    from trainers.labelling.cluster import cluster

    started, marks = time.perf_counter(), []
    report, _ = cluster(features, int(k), out, progress=lambda at: marks.append((time.perf_counter(), at.samples_done)))
    (begun, before), (ended, after) = marks[0], marks[-1]
    each = (ended - begun) / (after - before)
    return {"seconds": time.perf_counter() - started, "peak": peak(), "rows": report.rows, "each": each}


_STEPS = {"embed": embed_shards, "cluster": cluster_features}


def child(*words: str) -> dict[str, float]:
    """The answer of a measurement in a process of its own."""
    call = [sys.executable, "-m", "benchmarks.feature_memory", "--child", *words]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=500, help="photos of the smaller shard; 0: no embedding")
    parser.add_argument("--features", type=int, default=2_000_000, help=f"a multiple of {10 * _A_SHARD}; 0: no clustering")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--k", type=int, default=256)
    given = parser.parse_args()
    shutil.rmtree(given.folder, ignore_errors=True)
    if given.samples:
        import torch
        import torchvision

        make_shard(given.folder / "small", given.samples)
        make_shard(given.folder / "large", 10 * given.samples)
        (given.folder / "many").mkdir()
        for n in range(10):
            shutil.copy(given.folder / "small" / "one.tar", given.folder / "many" / f"{n}.tar")
        weights = given.folder / "weights.pt"
        torch.save(torchvision.models.resnet18(weights=None).state_dict(), weights)
        for name in ("small", "large", "many"):
            got = child("embed", str(given.folder / name), str(given.folder / f"{name}-out"), str(weights))
            print(f"embed, {name}: {got['rows']:,} photos, peak {got['peak']:.0f} MB, {got['seconds']:.1f} s", flush=True)
    for count in (given.features // 10, given.features) if given.features else ():
        features = str(given.folder / f"features-{count}")
        make_features(features, count, given.width)
        got = child("cluster", features, str(given.folder / f"clusters-{count}"), str(given.k))
        print(
            f"cluster, {count:,} features of {given.width} numbers, k {given.k}: peak {got['peak']:.0f} MB, "
            f"{got['seconds']:.1f} s, {got['each'] * 1e6:.2f} us a feature to assign",
            flush=True,
        )
    shutil.rmtree(given.folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        step, *rest = sys.argv[2:]
        print(json.dumps(_STEPS[step](*rest)))
    else:
        main()
