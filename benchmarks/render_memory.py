"""Measures the memory of rendering to disk: by the size of a shard, and on the driver by the number of shards.

    python -m benchmarks.render_memory FOLDER [--samples 500] [--shards 100000]

FOLDER is emptied and used. First one shard of so many samples, and one of ten times as many, are rendered in a process each,
which tells its peak. Then a folder of many tiny shards with an index is planned, looked at when half of it is done, and
published, in a process each, which tells the seconds and by how much its peak rose over that of planning a single shard.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

TASKS = {"rotation": {}, "jigsaw": {}, "occlusion": {}, "colorization": {}}


def peak() -> float:
    """This process's largest resident set so far, in MB (Linux); `getrusage` would count that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def child(*words: str) -> dict[str, float]:
    """The answer of a measurement in a process of its own."""
    call = [sys.executable, "-m", "benchmarks.render_memory", "--child", *words]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def document(shards: str, form: str = "webdataset") -> dict[str, object]:
    """A recipe of four tasks."""
    return {"name": "memory", "seed": 1, "corpus": {"shards": shards}, "tasks": TASKS, "render": {"format": form}}


def make_shard(folder: Path, samples: int) -> None:
    """One shard of the same photo over and over."""
    from PIL import Image

    from pipeline.shards.writing import TarWriter

    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    photo = io.BytesIO()
    Image.fromarray(noise).resize((480, 320)).save(photo, "jpeg", quality=90)
    folder.mkdir(parents=True)
    with (folder / "one.tar").open("wb") as file:
        tar = TarWriter(file)
        for n in range(samples):
            tar.add(f"{n:06d}.jpg", photo.getvalue())
        tar.finish()


def render_shard(shards: str, out: str, form: str) -> dict[str, float]:
    """Render in this process; returns the peak."""
    from pipeline.materialize.run import render
    from pipeline.recipe import parse_recipe

    started = time.perf_counter()
    report = render(parse_recipe(document(shards, form)), out, here=True)
    return {"seconds": time.perf_counter() - started, "peak": peak(), "pairs": report.pairs}


def make_many(folder: Path, shards: int) -> None:
    """Write empty shards, and an index that says they hold samples."""
    from pipeline.shards.index import Index, Row

    folder.mkdir(parents=True)
    index = Index()
    for i in range(shards):
        name = f"shard-{i:06d}.tar"
        with (folder / name).open("wb") as file:
            file.truncate(10240)
        index.rows[name] = Row(1000, 10240, f"{i:064x}")
    index.save(str(folder))


def on_the_driver(step: str, shards: str, out: str) -> dict[str, float]:
    """Run one step of the driver's work; returns its seconds and how far the peak rose."""
    from pipeline.materialize.commit import COMMITS, CommitRecord, Output
    from pipeline.materialize.folder import claim, read_state
    from pipeline.materialize.publish import publish
    from pipeline.materialize.run import plan
    from pipeline.recipe import parse_recipe
    from pipeline.rendering.engine import build_engine

    recipe = parse_recipe(document(shards))
    identity = build_engine(recipe).identity()
    plan(parse_recipe(document(f"{shards}-one")), f"{out}-one", identity)  # so that the memory that any plan takes is not counted
    base, started = peak(), time.perf_counter()

    def answer(do: Callable[[], object]) -> dict[str, float]:
        do()
        return {"seconds": time.perf_counter() - started, "rise": peak() - base}

    if step == "plan":
        return answer(lambda: read_state(plan(recipe, out, identity)))
    if step == "publish":
        job = plan(recipe, out, identity)
        return answer(lambda: publish(job, read_state(job).done))
    job = plan(recipe, out, identity)
    if step == "look":
        return answer(lambda: read_state(job))
    claim(job)
    there, wanted = {"half": (0, 2), "rest": (1, 2)}[step]
    for i in range(there, len(job.corpus.urls), wanted):  # without the atomic writes of real records
        output = Output(job.output(i, 0), 10_000_000, f"{i:064x}", 1000)
        record = CommitRecord(job.shard(i), 10240, 1000, [output], [])
        text = json.dumps({**vars(record), "outputs": [{n: getattr(output, n) for n in output.__slots__}]})
        Path(out, COMMITS, f"{job.stem(i)}.json").write_text(text)
    return {}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--shards", type=int, default=100_000)
    given = parser.parse_args()
    shutil.rmtree(given.folder, ignore_errors=True)
    for form in ("webdataset", "parquet"):
        for samples in (given.samples, 10 * given.samples):
            shards = given.folder / f"{form}-{samples}"
            make_shard(shards, samples)
            got = child("shard", str(shards), str(given.folder / "out" / form / str(samples)), form)
            print(f"{form}: a shard of {samples} samples: peak {got['peak']:.0f} MB, {got['seconds']:.1f} s", flush=True)
            shutil.rmtree(given.folder / "out")
    many, out = str(given.folder / "many"), str(given.folder / "many-out")
    make_many(Path(many), given.shards)
    make_many(Path(f"{many}-one"), 1)
    got = child("plan", many, out)
    print(f"{given.shards} shards: planned in {got['seconds']:.1f} s, peak +{got['rise']:.0f} MB", flush=True)
    child("half", many, out)
    got = child("look", many, out)
    print(
        f"{given.shards} shards: looked at, half done, in {got['seconds']:.1f} s, peak with plan +{got['rise']:.0f} MB",
        flush=True,
    )
    child("rest", many, out)
    got = child("publish", many, out)
    print(f"{given.shards} shards: published in {got['seconds']:.1f} s, peak with plan +{got['rise']:.0f} MB", flush=True)
    shutil.rmtree(given.folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        step, *rest = sys.argv[2:]
        print(json.dumps(render_shard(*rest) if step == "shard" else on_the_driver(step, *rest)))
    else:
        main()
