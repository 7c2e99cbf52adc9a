"""Measures where a recipe's time goes: pairs are made, sent and trained on for a few seconds, on the cluster of the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.recipe.schema import Recipe
from pipeline.rendering.renderer import Columns
from pipeline.rendering.units import STAGES, UnitRenderer, UnitSource
from pipeline.streaming.batches import ahead
from pipeline.streaming.memory import keep_memory
from pipeline.streaming.plan import sends_crops, steps, units
from trainers.pretraining import prepared
from trainers.running.session import connect
from trainers.running.threads import network_threads

RECEIVE, STEP = "receive", "step"
_BATCHES_AHEAD, _WARM_STEPS = 2, 2
_HELD_UP, _WAITED = 0.75, 0.5
_LARGE = 200_000


@dataclass(frozen=True)
class Stage:
    """What one stage did while it was measured.

    Args:
        name: `read`, `check`, `render`, `tasks` (where the training worker makes them of crops), `receive` (a training worker
            that waits for batches) or `step` (of the network).
        images: how many passed.
        busy: seconds of work, summed over all processes that do it.
        waiting: seconds in which these processes worked on none of their stages.
        spread: p50, p90 and p99 over images, batches or steps, milliseconds an image.
        cpu: processor time, milliseconds an image.
        bytes: bytes an image that leave the stage.
    """

    name: str
    images: int
    busy: float
    waiting: float
    spread: tuple[float, float, float]
    cpu: float
    bytes: float


@dataclass(frozen=True)
class Bench:
    """What `bench` measured.

    Args:
        stages: in the order in which an image passes them.
        made: images a second that the rendering processes could make if nothing held them up.
        arrived: images a second that reached a training worker which only received them.
        learned: images a second that the networks of all training workers can train on.
        first: seconds from the start of the stream to its first batch.
        verdict: the limiting stage and what to change.
    """

    stages: list[Stage]
    made: float
    arrived: float
    learned: float
    first: float
    verdict: str


def bench(recipe: Recipe, seconds: float = 10.0, on_progress: Callable[[str], None] | None = None) -> Bench:
    """Measure a recipe's stages.

    Args:
        recipe: the recipe.
        seconds: how long the stream is measured, and how long the network.
        on_progress: called with the name of each as it begins.

    Raises:
        UserError: the recipe cannot run as it is, or not on this cluster.
    """
    import ray

    recipe, source, _ = prepared(recipe)
    connect(recipe)
    worker = ray.remote(num_cpus=recipe.training.cpus, num_gpus=recipe.training.gpus, max_retries=0)

    def on_a_worker(name: str, work: Callable[..., Any], *more: Any) -> Any:
        if on_progress:
            on_progress(name)
        return ray.get(worker(work).remote(source, seconds, *more))

    stream: _Stream = on_a_worker("the stream", _stream, network_threads(recipe))
    steps: _Watch = on_a_worker("the network", _steps, network_threads(recipe))
    place, workers = recipe.placement, recipe.training.most_workers
    renders = place.render == "workers"
    processes = place.actors if renders else 1
    *rendering, tasks = zip(STAGES, stream.made)
    per_image = sum(sum(watch.busy) for _, watch in rendering) / stream.made[0].images
    made = processes * (1 if renders else workers) / per_image
    arrived = stream.received.images / stream.seconds * (1 if renders else workers)
    learned = workers * steps.images / sum(steps.busy)
    made_here = sum(tasks[1].busy)
    idle = max(0.0, processes * stream.seconds - per_image * stream.made[0].images)
    encoded = float(source.corpus.sizes.sum() / source.corpus.samples)
    pixels = stream.received.bytes
    crops = sends_crops(source)
    sent = 3.0 * recipe.image.size**2 if crops else pixels
    stages = [
        *(_stage(name, watch, idle, encoded if name != "render" else sent) for name, watch in rendering),
        *([_stage(*tasks, stream.seconds - made_here, pixels)] if crops else []),
        _stage(RECEIVE, stream.received, max(0.0, stream.seconds - made_here - stream.received.cpu), pixels),
        _stage(STEP, steps, 0.0, 0.0),
    ]
    verdict = limiting(recipe, stages, made, arrived, learned)
    return Bench(stages, made, arrived, learned, stream.first, verdict)


def limiting(recipe: Recipe, stages: list[Stage], made: float, arrived: float, learned: float) -> str:
    """Name the limiting stage and what to change, in words; arguments as in `Bench`."""
    place = recipe.placement
    by_name = {stage.name: stage for stage in stages}
    read, render, tasks = by_name["read"], by_name["render"], by_name.get("tasks")
    workers = place.render == "workers"
    rates = f"{arrived:,.0f} images a second arrive, the network takes {learned:,.0f}"
    if learned <= arrived:
        return f"The network limits ({rates}): faster rendering would not help; add training workers, or faster ones."
    if tasks and tasks.busy > tasks.waiting:
        return (
            f"The tasks limit ({rates}): the training worker makes pairs from crops. Raise training.threads and "
            "training.cpus where processors are idle, or take more training workers."
        )
    if arrived < _HELD_UP * made:
        sent = render.bytes if workers else read.bytes
        way = f"The transfer to the trainer limits: {made:,.0f} images a second could be made, each sends {sent / 1000:,.0f} kB"
        smaller = "placement.render: trainer, which sends the files" if workers and read.bytes < render.bytes else "fewer actors"
        return f"{way}, and {rates}. Try {smaller}, or larger blocks (a lower training.order.groups)."
    more = "placement.actors" if workers else "placement.threads"
    if read.busy > render.busy and read.cpu * read.images < _WAITED * 1000 * read.busy:
        return f"Reading limits ({rates}): it waits for storage most of the time. Raise {more}, or move the shards nearer."
    reduce = read.bytes > _LARGE and not recipe.image.reduced and recipe.engine != "dali"
    options = [
        f"raise {more} where processors are idle",
        *(["set image.reduced: true, for the photos are large"] if reduce else []),
    ]
    return f"Rendering limits ({rates}): {', '.join(options)}, or render once to disk (`pseudolabel render`)."


@dataclass
class _Watch:
    """Measurements of one stage: seconds of each image, batch or step, the images in each, and processor seconds in all."""

    busy: list[float]
    sizes: list[int]
    cpu: float
    bytes: float = 0.0

    @property
    def images(self) -> int:
        return sum(self.sizes)


@dataclass
class _Stream:
    made: list[_Watch]
    received: _Watch
    seconds: float
    first: float


def _stage(name: str, watch: _Watch, waiting: float, leaving: float) -> Stage:
    each = 1000 * np.array(watch.busy) / np.array(watch.sizes)
    p50, p90, p99 = np.percentile(each, (50, 90, 99)).tolist()
    cpu = 1000 * watch.cpu / watch.images
    return Stage(name, watch.images, sum(watch.busy), waiting, (p50, p90, p99), cpu, leaving)


def _stream(source: UnitSource, seconds: float, threads: int) -> _Stream:
    """Measure the stream in a training worker that only receives batches, from its second batch on."""
    keep_memory()
    started = time.perf_counter()
    made = ahead(steps([source], units([source], crops=True), 0, 1, _own_gpu(), threads=threads), _BATCHES_AHEAD)
    columns = next(made)[1]
    first = time.perf_counter()
    cpu, asked = time.process_time(), first
    took: list[float] = []
    each: list[np.ndarray] = []
    for _, columns in made:
        now = time.perf_counter()
        took.append(now - asked)
        each.append(columns["seconds"])
        asked = now
        if now - first >= seconds:
            break
    spent = time.process_time() - cpu
    leaving = sum(column.nbytes for column in columns.values() if column.dtype != object) / len(columns["id"])
    images = np.concatenate(each)
    stages = [
        _Watch(images[:, k].tolist(), [1] * len(images), float(images[:, len(STAGES) + k].sum())) for k in range(len(STAGES))
    ]
    received = _Watch(took, [len(seconds) for seconds in each], spent - stages[-1].cpu, leaving)
    return _Stream(stages, received, asked - first, first - started)


def _own_gpu() -> int | None:
    """The GPU on which this training worker keeps the pixels that it renders itself; None without one."""
    import ray

    return 0 if ray.get_gpu_ids() else None


def _unit(source: UnitSource, gpu: int | None) -> Columns:
    """The columns of the first unit, with pixels on the device where a training worker gets them."""
    place = source.recipe.placement
    if place.render == "trainer":
        return UnitRenderer(source, place.threads, gpu)(source.read(0))
    return source.maker(place.threads, lambda stage, unit: None)(0)


def _steps(source: UnitSource, seconds: float, threads: int) -> _Watch:
    """Measure repeated training steps on one batch, with its transfer to the device: the network without the data plane."""
    import torch

    from trainers.learning.gradients import accumulate
    from trainers.learning.optim import build_optimizer, place
    from trainers.learning.pretext import PretextModel

    recipe = source.recipe
    device = torch.device("cpu" if _own_gpu() is None else "cuda")
    if device.type == "cpu":
        torch.set_num_threads(threads)
    rows = recipe.training.batch // recipe.training.most_workers
    unit = _unit(source, _own_gpu())
    taken = np.resize(np.arange(len(unit["id"])), rows)
    columns = {name: column[taken] for name, column in unit.items()}
    model = place(PretextModel(recipe, recipe.seed), device)
    optimizer, _ = build_optimizer(recipe.training.optimizer, model, 1000)
    took: list[float] = []
    cpu, started = 0.0, time.perf_counter()
    while len(took) <= _WARM_STEPS or time.perf_counter() - started < seconds:
        if len(took) == _WARM_STEPS:
            cpu = time.process_time()
        asked = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        outcomes = accumulate(model, recipe.tasks, columns, rows, recipe.training.precision, recipe.training.accumulate)
        optimizer.step()
        next(iter(outcomes.values())).count.item()  # waits for the device
        took.append(time.perf_counter() - asked)
    counted = took[_WARM_STEPS:]
    return _Watch(counted, [rows] * len(counted), time.process_time() - cpu)
