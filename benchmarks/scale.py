"""Measures what grows with shards and units: the order of training, the corpus that actors receive, and units through Ray Data.

    python -m benchmarks.scale [--shards 1000000] [--units 2000]

Prints seconds and megabytes. Nothing is rendered but 8-pixel crops of noise, so that the units' rate is that of Ray alone.
"""

from __future__ import annotations

import argparse
import io
import pickle
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.ordering.order import Geometry, Schedule
from pipeline.recipe import Recipe, parse_recipe
from pipeline.rendering.units import UnitSource, row_bytes
from pipeline.shards.corpus import Corpus
from pipeline.shards.opening import open_corpus
from pipeline.shards.pack import pack
from trainers.running.session import connect

SAMPLES = 1000


def peak() -> float:
    """Memory of this process at most so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def recipe_of(shards: str, **training: object) -> Recipe:
    """Rotation on 8 pixels."""
    return parse_recipe(
        {
            "name": "scale",
            "seed": 1,
            "corpus": {"shards": shards},
            "image": {"size": 8},
            "tasks": {"rotation": {}},
            "placement": {"cpus": 0.5},
            "engine": "cpu",
            "training": training,
        }
    )


def order(shards: int) -> None:
    """Build the order of training over `shards` x 1,000 samples, and ask it for the first unit at several places."""
    base = peak()
    counts = np.full(shards, SAMPLES, np.int64)
    started = time.perf_counter()
    recipe = recipe_of("unused", batch=4096)
    schedule = Schedule(counts, Geometry.of(recipe.training.order, 4096, 750_000), 1, 1)
    schedule.unit(0)
    took = time.perf_counter() - started
    print(f"order of {shards:,} shards, {shards * SAMPLES:,} samples: {took:.2f} s, +{peak() - base:.0f} MB")
    for share in (0.1, 0.5, 0.9):
        step, started = int(share * schedule.steps), time.perf_counter()
        schedule.unit(0, step)
        print(f"  first unit at {share:.0%} of the epoch: {1000 * (time.perf_counter() - started):.2f} ms")


def sent(shards: int) -> None:
    """Pickle the corpus as it is sent to every actor."""
    urls = [f"s3://bucket/corpus/shard-{i:07d}.tar" for i in range(shards)]
    base, started = peak(), time.perf_counter()
    corpus = Corpus(urls, np.full(shards, 10**8, np.int64), np.full(shards, SAMPLES, np.int64))
    size = len(pickle.dumps(corpus, protocol=5))
    took = time.perf_counter() - started
    print(f"corpus of {shards:,} shards, pickled: {size / 1e6:.0f} MB in {took:.2f} s, +{peak() - base:.0f} MB")


def units(count: int) -> None:
    """Units a second through Ray Data, rendered by two actors, read by this process."""
    from pipeline.streaming.plan import units as stream

    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        photos = Path(folder, "photos")
        photos.mkdir()
        for n in range(64):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(buffer, "jpeg")
            (photos / f"{n:03d}.jpg").write_bytes(buffer.getvalue())
        pack(str(photos), f"{folder}/shards", labels="none")
        recipe = recipe_of(f"{folder}/shards", batch=16, order={"lanes": 4, "groups": 4, "window": 1})
        corpus = open_corpus(recipe.corpus.shards)
        geometry = Geometry.of(recipe.training.order, 16, row_bytes(recipe))
        schedule = Schedule(corpus.counts, geometry, 1, -(-count // 16))
        connect(recipe)
        seen, started = 0, 0.0
        for _ in stream(UnitSource(recipe, corpus, schedule)).iter_batches(batch_size=None):
            started = started or time.perf_counter()
            seen += 1
            if seen > count:
                break
        took = time.perf_counter() - started
        print(f"units of 4 samples of 8 pixels through Ray Data: {(seen - 1) / took:.0f} a second")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--units", type=int, default=2000)
    given = parser.parse_args()
    order(given.shards)
    sent(given.shards)
    units(given.units)


if __name__ == "__main__":
    main()
