"""Measures how fast a corpus is rendered to disk: by Ray, by a plain loop in one process, and for a larger corpus.

    python -m benchmarks.render_rate PHOTOS FOLDER [--copies 4] [--rounds 3] [--shard 4]

PHOTOS is a folder or tar of photos; FOLDER is emptied and used. Prints images a second of each way, by the clock and by the
processor time of all processes that take part (Ray's own among them), interleaved in rounds; and the time an image and the peak
memory of one copy of the photos and of all copies.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.measure import cpu_seconds, family
from benchmarks.render_memory import peak
from pipeline.recipe import Recipe, parse_recipe
from pipeline.shards.pack import pack


def recipe_of(shards: list[str], form: str, image: str | None) -> Recipe:
    """Four tasks on 224 pixels, one actor of one thread."""
    return parse_recipe(
        {
            "name": "rate",
            "seed": 1,
            "corpus": {"shards": shards},
            "tasks": {"rotation": {}, "jigsaw": {}, "occlusion": {}, "colorization": {}},
            "failures": {"budget": 0.5},
            "render": {"format": form, "image": image},
        }
    )


def once(way: str, recipe: Recipe, out: Path) -> dict[str, float]:
    """Render in a process of its own; returns samples, seconds and CPU seconds from the first shard to the last, and peak MB."""
    shutil.rmtree(out, ignore_errors=True)
    words = [sys.executable, "-m", "benchmarks.render_rate", "--child", way, str(out)]
    done = subprocess.run(words, input=recipe.model_dump_json(), capture_output=True, text=True, check=True)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def child(way: str, out: str) -> None:
    """Run the process that `once` starts."""
    from pipeline.materialize.run import Progress, render

    recipe = parse_recipe(json.loads(sys.stdin.read()))
    marks: list[tuple[float, float, int]] = []

    def note(progress: Progress) -> None:
        marks.append((time.perf_counter(), cpu_seconds(family()), progress.samples_done))

    if way == "ray":
        import ray

        ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False, object_store_memory=200 * 2**20)
    render(recipe, out, progress=note, here=way == "here")
    first, last = (np.array(marks[n]) for n in (1 if len(marks) > 2 else 0, -1))  # before the first shard's end it starts up
    seconds, cpu, samples = (last - first).tolist()
    print(json.dumps({"seconds": seconds, "cpu": cpu, "samples": samples, "peak": peak()}))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--copies", type=int, default=4, help="the photos, so many times")
    parser.add_argument("--rounds", type=int, default=3, help="of both comparisons")
    parser.add_argument("--shard", type=int, default=4, help="MiB of a shard at most")
    parser.add_argument("--format", default="webdataset")
    parser.add_argument("--image", default=None)
    given = parser.parse_args()
    shutil.rmtree(given.folder, ignore_errors=True)
    pack(given.photos, str(given.folder / "copy-0"), labels="none", shard_size=given.shard * 2**20)
    for copy in range(1, given.copies):
        shutil.copytree(given.folder / "copy-0", given.folder / f"copy-{copy}")
    copies = [str(given.folder / f"copy-{copy}") for copy in range(given.copies)]
    rounds: dict[str, list[dict[str, float]]] = {"here": [], "ray": []}
    for _ in range(given.rounds):
        for way, found in rounds.items():
            found.append(once(way, recipe_of(copies, given.format, given.image), given.folder / "out"))
    for clock in ("seconds", "cpu"):
        rates = {way: [got["samples"] / got[clock] for got in found] for way, found in rounds.items()}
        unit = "s" if clock == "seconds" else "CPU s"
        for way, rate in rates.items():
            print(f"{way:5} {statistics.median(rate):7.1f} img/{unit}  ({', '.join(f'{one:.1f}' for one in rate)})")
        print(f"over Ray / plain loop, img/{unit}: {statistics.median(rates['ray']) / statistics.median(rates['here']):.3f}")
    sizes: dict[int, list[dict[str, float]]] = {1: [], given.copies: []}
    for _ in range(given.rounds):
        for count, found in sizes.items():
            found.append(once("here", recipe_of(copies[:count], given.format, given.image), given.folder / "out"))
    for count, found in sizes.items():
        wall, cpu = (statistics.median(got[clock] / got["samples"] * 1000 for got in found) for clock in ("seconds", "cpu"))
        peak = statistics.median(got["peak"] for got in found)
        print(f"{count:3} copies: {wall:.2f} ms an image, {cpu:.2f} ms of CPU, peak memory {peak:.0f} MB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:4])
    else:
        main()
