"""Measures how long a resumed run waits for its first batch, early and late in an epoch of many small images.

    python -m benchmarks.resume_time FOLDER [--images 100000] [--rounds 3]

FOLDER is emptied and used: the images are tiles of three photos, 32 pixels, in shards of 1,000. For each place, in turn, the data
plane is started again, as in a resumed run, until a worker holds its first batch. Prints seconds.
"""

from __future__ import annotations

import argparse
import io
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from PIL import Image
from skimage import data

from pipeline.ordering.order import Geometry, Schedule
from pipeline.recipe import Recipe, parse_recipe
from pipeline.rendering.units import UnitSource, row_bytes
from pipeline.shards.opening import open_corpus
from pipeline.shards.writing import TarWriter
from trainers.learning.rank_stream import RankStream
from trainers.running.fit import fit
from trainers.running.run_log import open_run_log
from trainers.running.session import connect

SHARD = 1000
PLACES = (0.1, 0.9)


def write_corpus(folder: Path, images: int) -> None:
    """The tiles, as JPEGs."""
    photos = (data.chelsea(), data.coffee(), data.rocket())
    folder.mkdir(parents=True)
    for first in range(0, images, SHARD):
        with (folder / f"shard-{first // SHARD:06d}.tar").open("wb") as file:
            tar = TarWriter(file)
            for n in range(first, min(first + SHARD, images)):
                photo, encoded = photos[n % 3], io.BytesIO()
                top, left = 7 * n % (photo.shape[0] - 32), 13 * n % (photo.shape[1] - 32)
                Image.fromarray(photo[top : top + 32, left : left + 32]).save(encoded, "JPEG")
                tar.add(f"{n:09d}.jpg", encoded.getvalue())
            tar.finish()


def work(config: dict[str, Any]) -> None:
    """The worker: the first batch, and how long it took."""
    import ray

    feed = RankStream([config["source"]], 0, 1)
    next(iter(feed))
    ray.get(config["run_log"].set_result.remote({"seconds": feed.first_batch}))


def first_batch(recipe: Recipe, source: UnitSource) -> float:
    """Seconds from the start of the stream to its first batch, in a worker of its own."""
    import ray

    run_log = open_run_log()
    fit(work, {"source": source, "run_log": run_log}, recipe, "resume", run_log, [])
    return float(ray.get(run_log.result.remote())["seconds"])


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    shutil.rmtree(given.folder, ignore_errors=True)
    write_corpus(given.folder / "shards", given.images)
    recipe = parse_recipe(
        {
            "name": "resume",
            "seed": 0,
            "corpus": {"shards": str(given.folder / "shards")},
            "image": {"size": 32},
            "tasks": {"rotation": {}},
            "placement": {"cpus": 0.5},
            "storage": {"runs": str(given.folder / "runs")},
        }
    )
    started = time.perf_counter()
    corpus = open_corpus(recipe.corpus.shards)
    print(f"{corpus.samples} images in {len(corpus.urls)} shards, indexed in {time.perf_counter() - started:.1f} s")
    geometry = Geometry.of(recipe.training.order, recipe.training.batch, row_bytes(recipe))
    schedule = Schedule(corpus.counts, geometry, recipe.seed, 1)
    connect(recipe)
    found: dict[float, list[float]] = {place: [] for place in PLACES}
    first_batch(recipe, UnitSource(recipe, corpus, schedule))  # the first start of all loads libraries from disk
    for _ in range(given.rounds):
        for place, seconds in found.items():
            seconds.append(first_batch(recipe, UnitSource(recipe, corpus, schedule, int(place * schedule.steps))))
    for place, seconds in found.items():
        each = ", ".join(f"{one:.2f}" for one in seconds)
        print(f"at {place:.0%} of {schedule.steps} steps: first batch after {statistics.median(seconds):.2f} s ({each})")


if __name__ == "__main__":
    main()
