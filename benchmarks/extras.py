"""Extra measurements, each in a process of its own: planning, start-up, stages, bytes, waiting.

    python -m benchmarks.extras plan|start|stages|processes|ceiling|bytes|train PHOTOS_FOLDER

PHOTOS_FOLDER is where `python -m benchmarks` keeps its shards. Each prints a line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.measure import cpu_seconds, family
from benchmarks.sections import LARGER
from benchmarks.work import TASKS, Job

SHARDS = 100_000
_ROUNDS = 5
_WARM_BATCHES, _BATCHES = 20, 60
_TURNS, _TURN_SECONDS = 3, 3.0


def ask(what: str, folder: Path) -> dict[str, Any]:
    """Measure one of these in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.extras", what, str(folder)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def plan(_: Path) -> dict[str, Any]:
    """Open a corpus of 100,000 indexed shards and plan training over it, down to the first unit's samples."""
    from pipeline.ordering.order import Geometry, Schedule
    from pipeline.recipe.training import OrderSection
    from pipeline.shards.index import Index, Row
    from pipeline.shards.opening import open_corpus
    from pipeline.storage import expand

    with tempfile.TemporaryDirectory() as folder:
        _write_index(Path(folder), Index, Row)
        open_corpus([f"{folder}/shard-000000.tar"])  # what the first call imports is not what planning takes
        before, started = _peak(), time.perf_counter()
        corpus = open_corpus(folder)
        schedule = Schedule(corpus.counts, Geometry.of(OrderSection(), 256, 700_000), seed=1, epochs=10)
        schedule.unit(0)
        seconds = time.perf_counter() - started
        listed = len(expand(folder))
        return {"shards": listed, "samples": corpus.samples, "seconds": seconds, "MB": (_peak() - before) / 1e6}


def _write_index(folder: Path, index: Any, row: Any) -> None:
    """Write sparse shards and an index of their samples; in a child process, so that its memory is not counted as planning's."""
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        return
    rows = index()
    for i in range(SHARDS):
        name = f"shard-{i:06d}.tar"
        with open(folder / name, "wb") as file:
            file.truncate(10240)
        rows.rows[name] = row(1000, 10240, "0" * 64)
    rows.save(str(folder))
    os._exit(0)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def start(folder: Path) -> dict[str, Any]:
    """Seconds from a running Ray to the first batch of four pairs, in this process's first stream and in its second."""
    import importlib

    import ray

    from benchmarks.contenders import plain_ray

    contender = importlib.import_module("benchmarks.contenders.ours_ray")
    asked = time.perf_counter()
    with plain_ray.quietly():
        ray.get(ray.remote(num_cpus=0)(lambda: None).remote())
    up = time.perf_counter() - asked
    found = {}
    for name in ("first", "second"):
        asked = time.perf_counter()
        batches = contender.batches(_job(folder))
        next(batches)
        found[name] = time.perf_counter() - asked
        batches.close()
    return {"ray": up, **found}


def stages(folder: Path) -> dict[str, Any]:
    """CPU milliseconds a photo of each stage of four pairs, medians over rounds, one core."""
    import torch

    from benchmarks.contenders.ours import recipe_of
    from pipeline.draws import Draws
    from pipeline.engines.cpu import CpuEngine
    from pipeline.images.check import Header, check_header
    from pipeline.rendering.renderer import Renderer
    from pipeline.shards.opening import open_corpus

    torch.set_num_threads(1)
    recipe = recipe_of(_job(folder))
    renderer, corpus = Renderer(recipe), open_corpus(recipe.corpus.shards)
    engine = renderer.engine
    assert isinstance(engine, CpuEngine)
    rows = np.arange(int(corpus.counts[0]))
    samples = corpus.read(0, rows)
    headers = [header for s in samples if isinstance(header := check_header(s.encoded, 10**8), Header)]
    draws = Draws(1, 0, np.array([s.id for s in samples], np.uint64))
    known = {"class": np.array([s.label for s in samples], np.int64)}
    request, _, _ = renderer._draw(headers, rows, draws, known)
    bare = CpuEngine({}, recipe.image.size)
    works: dict[str, Callable[[], Any]] = {
        "read": lambda: corpus.read(0, rows),
        "check": lambda: [check_header(s.encoded, 10**8) for s in samples],
        "draw": lambda: renderer._draw(headers, rows, draws, known),
        "decode": lambda: [engine._decode(request, row, 0) for row in range(len(rows))],
        "decode, crop": lambda: bare.run(request),
        "decode, crop, tasks": lambda: engine.run(request),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(_ROUNDS):
        for name, work in works.items():
            before = time.process_time()
            work()
            times[name].append((time.process_time() - before) / len(rows) * 1000)
    ms = {name: statistics.median(values) for name, values in times.items()}
    return {
        "read": ms["read"],
        "check": ms["check"],
        "draw": ms["draw"],
        "decode": ms["decode"],
        "crop": ms["decode, crop"] - ms["decode"],
        "tasks": ms["decode, crop, tasks"] - ms["decode, crop"],
    }


def processes(folder: Path) -> dict[str, Any]:
    """CPU milliseconds and page faults a photo of each process, and its own memory without what it shares, such as the object
    store: four pairs through Ray Data on two actors. Processes of the same name are summed."""
    from benchmarks.contenders import ours_ray

    with contextlib.closing(ours_ray.batches(replace(_job(folder), workers=2, options=LARGER))) as batches:
        for _ in range(_WARM_BATCHES):
            next(batches)
        before, photos = {process.pid: _used(process) for process in family()}, 0
        for _ in range(_BATCHES):
            photos += len(next(batches)["id"])
        total: defaultdict[str, float] = defaultdict(float)
        for process in family():
            with contextlib.suppress(psutil.NoSuchProcess):
                name = "training worker" if process.pid == os.getpid() else _role(process.cmdline())
                used = [now - then for now, then in zip(_used(process), before.get(process.pid, (0.0, 0)))]
                total[name] += used[0] / photos * 1000
                if not name.startswith("Ray"):
                    total[f"{name}, faults"] += used[1] / photos
                    total[f"{name}, MB"] += process.memory_full_info().uss / 1e6
    return {"photos": photos, **total}


def _used(process: psutil.Process) -> tuple[float, int]:
    """CPU seconds and minor page faults of a process."""
    faults = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[7])
    return cpu_seconds([process]), faults


def ceiling(folder: Path) -> dict[str, Any]:
    """Photos a second by the clock that one process makes four pairs of, and two processes at once that share nothing: what two
    actors can reach on this machine at most."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(_TURNS):
        for count, found in rates.items():
            words = [sys.executable, "-m", "benchmarks.extras", "alone", str(folder)]
            running = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(count)]
            found.append(sum(json.loads(one.communicate()[0].splitlines()[-1])["rate"] for one in running))
    one, two = (statistics.median(found) for found in rates.values())
    return {"one process": one, "two processes": two, "ratio": two / one}


def alone(folder: Path) -> dict[str, Any]:
    """Photos a second by the clock that this process makes four pairs of, from memory."""
    from benchmarks.contenders import ours_memory

    batches = ours_memory.batches(_job(folder))
    for _ in range(_WARM_BATCHES // 2):
        next(batches)
    started, photos = time.perf_counter(), 0
    while (seconds := time.perf_counter() - started) < _TURN_SECONDS:
        photos += len(next(batches)["id"])
    return {"rate": photos / seconds}


def _role(words: list[str]) -> str:
    """The name of a Ray process: the class of an actor, or the file that it runs."""
    title = " ".join(words)
    if title.startswith("ray::"):
        name = title.removeprefix("ray::").split("(")[0].split("[")[0].split(".")[0].strip()
        return "data actors" if name == "MapWorker" else f"Ray: {name}"
    files = [Path(word).name for word in words if not word.startswith("-")]
    return f"Ray: {next((file for file in files if not file.startswith('python')), 'other')}"


def bytes_(folder: Path) -> dict[str, Any]:
    """Bytes a photo through the object store: what the blocks of each placement hold, for one pair and for four."""
    from benchmarks.contenders import plain_ray
    from benchmarks.contenders.ours import recipe_of
    from pipeline.streaming.pairs import open_source
    from pipeline.streaming.plan import units

    found = {}
    with plain_ray.quietly():
        for tasks in (TASKS[:1], TASKS):
            for place in ("workers", "trainer"):
                recipe = recipe_of(_job(folder, tasks), render=place)
                block = next(iter(units([open_source(recipe)], crops=True).iter_batches(batch_size=None, batch_format="pyarrow")))
                found[f"{place}, {len(tasks)} task{'s' if len(tasks) > 1 else ''}"] = block.nbytes / block.num_rows
    return found


def train(folder: Path) -> dict[str, Any]:
    """A short pretraining on the processors: what share of its time the trainer waited, and when its first batch came."""
    from benchmarks.contenders.ours import recipe_of
    from trainers.pretraining import pretrain

    recipe = recipe_of(_job(folder), cpus=0.5).model_dump(mode="json")
    recipe["image"]["size"] = 96
    recipe["training"] |= {"backbone": {"name": "resnet10", "stem": "standard"}, "batch": 64, "epochs": 1, "cpus": 1.5}
    with tempfile.TemporaryDirectory() as runs:
        from pipeline.recipe import parse_recipe

        outcome = pretrain(parse_recipe({**recipe, "storage": {"runs": runs}, "tracking": {"tensorboard": False}}))
    found = outcome["stages"]
    return {
        "wait share": found["wait"] / found["total"],
        "without the first batch": (found["wait"] - found["first_batch"]) / (found["total"] - found["first_batch"]),
        "first batch": found["first_batch"],
        "samples a second": outcome["samples_per_second"],
    }


def _job(folder: Path, tasks: tuple[str, ...] = TASKS) -> Job:
    shards = tuple(sorted(str(path) for path in (folder / "500x375").glob("*.tar")))
    return Job(shards, 224, tasks)


MEASURES = {
    "plan": plan,
    "start": start,
    "stages": stages,
    "processes": processes,
    "ceiling": ceiling,
    "bytes": bytes_,
    "train": train,
}

if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr  # where Ray writes, too
    print(json.dumps({**MEASURES, "alone": alone}[sys.argv[1]](Path(sys.argv[2]))), file=answers)
