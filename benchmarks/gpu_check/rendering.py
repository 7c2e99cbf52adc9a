"""One engine's part of the check, in a process of its own: compares its pixels with the CPU engine's, or measures its speed.

    python -m benchmarks.gpu_check.rendering pixels|speed ENGINE

ENGINE is `cpu`, `dali` (on the CPU, where this process sees no GPU) or `dali:0` (on GPU 0, where the pixels stay).
A line of JSON goes to stdout.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np

from benchmarks.gpu_check.photos import windows
from benchmarks.photos import jpeg
from cluster.doctor.checks import near
from pipeline.draws import sample_id
from pipeline.recipe import Recipe, parse_recipe
from pipeline.rendering.renderer import Renderer
from pipeline.shards.corpus import Sample

SIZE = 224
_SAMPLES, _BATCH, _SECONDS = 24, 64, 5.0
_MOST_THREADS = 8
_FOUR: dict[str, Any] = {"rotation": {}, "jigsaw": {}, "occlusion": {}, "colorization": {}}


def recipe(engine: str, tasks: dict[str, Any], frames: int) -> Recipe:
    """Tasks on 224 pixels."""
    corpus: dict[str, Any] = {"shards": "photos in memory", **({"frames": frames} if frames > 1 else {})}
    if "assigned" in tasks:
        corpus["annotations"] = {"labels": "none, for pixels are compared"}
    return parse_recipe({"name": "check", "seed": 11, "corpus": corpus, "tasks": tasks, "engine": engine.partition(":")[0]})


def samples(count: int, frames: int) -> list[Sample]:
    """Photos as files, or clips of them."""
    made = []
    photos = [jpeg(photo) for _, photo in windows(count * frames)]
    for n in range(count):
        files = photos[n * frames : (n + 1) * frames]
        sizes = [len(file) for file in files] if frames > 1 else []
        made.append(Sample(str(n), sample_id(str(n)), b"".join(files), "jpg", -1, None, sizes))
    return made


def renderer(engine: str, tasks: dict[str, Any], frames: int) -> Renderer:
    """The engine, on as many threads as the machine has for it."""
    gpu = engine.partition(":")[2]
    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    return Renderer(recipe(engine, tasks, frames), threads, gpu=int(gpu) if gpu else None)


def pixels(engine: str) -> dict[str, Any]:
    """Compare every registered task with the CPU engine's pixels, as `pseudolabel doctor` does; returns what is too far off."""
    from pipeline.tasks import registry

    frames = max(task.frames for task in registry().values())
    tasks: dict[str, Any] = {name: {} for name in registry()}
    given = samples(_SAMPLES, frames)
    ours, base = (renderer(name, tasks, frames)(given, 0) for name in (engine, "cpu"))
    shown = [name for name in base.columns if name in ("image", "frames") or name.endswith(".input")]
    made = {name: _on_host(ours.columns[name]) for name in shown}
    checks = [near(engine, name, made[name], base.columns[name], "") for name in shown]
    wrong = [f"{check.name}: {check.found}" for check in checks if check.status != "ok"]
    wrong += [f"sample {row}: {reason}" for row, reason in ours.failures.items()]
    most = max(float(np.abs(made[name].astype(np.int16) - base.columns[name]).mean()) for name in shown)
    return {"wrong": wrong, "most": round(most, 3), "columns": {check.name: check.found for check in checks}}


def speed(engine: str) -> dict[str, Any]:
    """Photos a second with four tasks, of photos in memory."""
    given = samples(4 * _BATCH, 1)
    render = renderer(engine, _FOUR, 1)
    render(given[:_BATCH], 0)  # the first one starts up
    count, epoch, began = 0, 1, time.perf_counter()
    while time.perf_counter() - began < _SECONDS:
        at = count % len(given)
        render(given[at : at + _BATCH], epoch)
        count, epoch = count + _BATCH, epoch + 1
    spent = time.perf_counter() - began
    return {"images_per_second": round(count / spent, 1), "images": count, "engine": render.engine.identity(), "pixels": SIZE}


def _on_host(column: Any) -> np.ndarray:
    return column if isinstance(column, np.ndarray) else column.cpu().numpy()


if __name__ == "__main__":
    print(json.dumps({"pixels": pixels, "speed": speed}[sys.argv[1]](sys.argv[2])))
