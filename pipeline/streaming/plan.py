"""The Ray Data plan for training: unit numbers -> a pool of actors -> units of pairs, in order.

Only numbers enter the plan; each actor reads what its unit needs from the shards. With placement `workers` the actors decode and
send pixels (crops, or whole pairs, see `sends_crops`); with `trainer` they send encoded bytes, and `rendered` turns those into
pixels beside the network.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.engines import with_views
from pipeline.ordering.order import Geometry, Schedule
from pipeline.recipe.schema import Recipe
from pipeline.rendering.engine import engine_name, settled
from pipeline.rendering.renderer import Columns
from pipeline.rendering.tasks_on_crops import CropTaskRenderer
from pipeline.rendering.units import EncodedUnit, UnitRenderer, UnitSource, row_bytes
from pipeline.shards.corpus import Corpus, Sample
from pipeline.shards.opening import open_training_corpus
from pipeline.streaming.batches import ahead, batches
from pipeline.streaming.connection import connect_ray, quiet_data
from pipeline.streaming.memory import keep_memory
from pipeline.streaming.metrics import Meter
from pipeline.streaming.pace import PollThrottle

if TYPE_CHECKING:
    import ray.data

_UNITS_AHEAD = 2
_READ_BYTES = 128 * 2**20  # of a window of `dataset`, at a time
_INTERNAL = ("unit", "seconds", "failure")


Tell = Callable[[str, str, int], None]
"""Takes the name of an actor's process, what it is at (`start`, a stage, or `idle`) and the number of the unit."""


class _Teller:
    """An actor's own words for what it is at."""

    def __init__(self, tell: Tell | None) -> None:
        self._tell, self._name = tell, f"{socket.gethostname()}, process {os.getpid()}"
        self("start")

    def __call__(self, stage: str, unit: int = -1) -> None:
        if self._tell is not None:
            self._tell(self._name, stage, unit)


class _RenderUnits:
    """Actor of placement `workers`: read, check, draw and render, fused."""

    def __init__(self, source: UnitSource, tell: Tell | None, tasks: int, threads: int) -> None:
        keep_memory()
        self._say = _Teller(tell)
        self._make = source.maker(threads, self._say)
        self._meter, self._tasks = Meter(source.recipe.name, "training"), tasks
        self._say("idle")

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[Columns]:
        for number in batch["id"]:
            unit = self._make(int(number))
            self._say("idle")
            yield self._meter.unit(unit, self._tasks)


class _ReadUnits:
    """Actor of placement `trainer`: read only; the bytes go out as they are."""

    def __init__(self, source: UnitSource, tell: Tell | None) -> None:
        self._source, self._say, self._meter = source, _Teller(tell), Meter(source.recipe.name, "training")
        self._say("idle")

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[Any]:
        import pyarrow as pa

        for number in batch["id"]:
            self._say("read", int(number))
            unit = self._source.read(int(number))
            self._say("idle")
            n = len(unit.samples)
            columns = {
                name: pa.array([getattr(s, name) for s in unit.samples], kind)
                for name, kind in (
                    ("key", pa.string()),
                    ("id", pa.uint64()),
                    ("ext", pa.string()),
                    ("label", pa.int32()),
                    ("problem", pa.string()),
                    ("sizes", pa.list_(pa.int64())),
                )
            }
            encoded = pa.array([s.encoded for s in unit.samples], pa.large_binary())
            self._meter.traffic()
            yield pa.table({**columns, "encoded": encoded, "unit": [unit.number] * n, "read": [list(unit.read)] * n})


class _MakePairs:
    """Actor of `dataset`: reads a window of steps, and renders it step by step."""

    def __init__(self, source: UnitSource, quarantine: Any) -> None:
        keep_memory()
        self._source, self._quarantine = source, quarantine
        self._render = UnitRenderer(source, source.recipe.placement.threads)
        self._meter = Meter(source.recipe.name, "training")

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[Columns]:
        import ray

        for number in batch["id"]:
            for part in self._steps(int(number)):
                columns = self._meter.unit(self._render(part), len(self._source.recipe.tasks))
                ray.get(self._quarantine.add.remote(len(columns["id"]), [text for text in columns["failure"] if text]))
                if good := _good(columns):
                    yield good

    def _steps(self, window: int) -> Iterator[EncodedUnit]:
        """A window's steps; as many are read in one go as memory has room for."""
        geometry, corpus = self._source.schedule.geometry, self._source.corpus
        step_bytes = geometry.batch * corpus.sizes.sum() / corpus.samples
        rows = geometry.batch * max(1, int(_READ_BYTES / step_bytes))
        for start in range(0, geometry.batch * geometry.window, rows):
            yield from self._source.read(window, slice(start, start + rows)).parts(geometry.batch)


def sends_crops(source: UnitSource) -> bool:
    """Whether actors send the crops alone, of which the training worker makes the pairs (`pipeline.rendering.tasks_on_crops`).

    The inputs of four tasks are four times the bytes of their crop, and to move a byte from process to process costs more than to
    make it of the crop. Only the CPU engine's pixels are the same wherever they are made. Views are not made of the crop.
    """
    recipe = source.recipe
    plain = type(source) is UnitSource and recipe.placement.render == "workers" and recipe.engine == "cpu"
    return plain and bool(recipe.tasks) and not with_views(recipe.tasks, recipe.image.size)


def _without_tasks(source: UnitSource) -> UnitSource:
    training = source.recipe.training.model_copy(update={"tasks_per_sample": "all"})
    return replace(source, recipe=source.recipe.model_copy(update={"tasks": {}, "training": training}))


def sent_bytes(recipe: Recipe) -> int:
    """About how many bytes of a row an actor sends, engine settled; a file is taken to be as large as its crop."""
    views = with_views(recipe.tasks, recipe.image.size)
    whole = recipe.placement.render == "workers" and (recipe.engine != "cpu" or bool(views))
    return row_bytes(recipe) if whole else 3 * recipe.image.size**2 * (1 + (recipe.corpus.frames or 0))


def file_bytes(recipe: Recipe, corpus: Corpus) -> float:
    """How many bytes a row's files have, on average, where actors send these; else 0."""
    return corpus.sizes.sum() / max(corpus.samples, 1) if recipe.placement.render == "trainer" else 0.0


def units(source: UnitSource, tell: Tell | None = None, crops: bool = False) -> ray.data.Dataset:
    """The units of a source as a Ray Dataset: one block a unit, in the order of the schedule.

    Args:
        source: what to read or render.
        tell: called by the actors with what they are at.
        crops: for `steps`: send crops alone where `sends_crops` says so.
    """
    tasks, place = len(source.recipe.tasks), source.recipe.placement
    if crops and sends_crops(source):
        source = _without_tasks(source)
    if place.render == "trainer":
        return _planned(source, _ReadUnits, (source, tell), gpus=0, unsplit=True)
    return _planned(source, _RenderUnits, (source, tell, tasks, place.threads), place.gpus, unsplit=True)


def _planned(source: UnitSource, actor: type, args: tuple[Any, ...], gpus: float, unsplit: bool) -> ray.data.Dataset:
    """What actors make of the numbers of a source's units, in their order; `unsplit`: one block of each."""
    import ray.data

    quiet_data()
    place = source.recipe.placement
    context = ray.data.DataContext.get_current().copy()  # the caller's own settings stay as they are
    context.execution_options.preserve_order = True
    if unsplit:
        context.target_max_block_size = None  # else Ray cuts what is half as large again
    context.enable_progress_bars = False
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, PollThrottle]  # type: ignore[list-item]
    context.memory_usage_poll_interval_s = None  # else a thread for each unit
    with ray.data.DataContext.current(context):
        numbers = ray.data.range(source.schedule.units(source.step), override_num_blocks=1)
        return numbers.repartition(target_num_rows_per_block=1).map_batches(
            actor,
            fn_constructor_args=args,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=place.actors),
            num_cpus=place.cpus,
            num_gpus=gpus,
        )


def rendered(
    source: UnitSource, tables: Iterable[Any], threads: int, gpu: int | None = None, tell: Tell | None = None
) -> Iterator[Columns]:
    """Placement `trainer`, on the rank: encoded units, as Arrow tables, to columns of pairs. Pixels stay on `gpu`, its own."""
    render, say, meter = UnitRenderer(source, threads, gpu), _Teller(tell), Meter(source.recipe.name, "training")
    for table in tables:
        number = int(table["unit"][0].as_py())
        say("render", number)
        epoch, rows = source.schedule.unit(number, source.step)
        encoded = [memoryview(value.as_buffer()).cast("B") for chunk in table["encoded"].chunks for value in chunk]
        meta = table.select(["key", "id", "ext", "label", "problem", "sizes"]).to_pylist()
        samples = [Sample(encoded=data, **row) for data, row in zip(encoded, meta)]
        unit = render(EncodedUnit(number, epoch, rows, samples, tuple(table["read"][0].as_py())))
        say("idle")
        yield meter.unit(unit, len(source.recipe.tasks))


def steps(
    source: UnitSource, data: Any, rank: int, world: int, gpu: int | None = None, tell: Tell | None = None, threads: int = 1
) -> Iterator[tuple[int, Columns]]:
    """A training worker's steps, out of the units that reach it, whatever the placement.

    Args:
        source: the source of the units.
        data: what `units(source, crops=True)` gives, or the rank's split of it.
        rank: this rank.
        world: number of ranks.
        gpu: the rank's own GPU; with placement `trainer`, pixels stay on it.
        tell: as for `units`.
        threads: CPU threads that make the tasks of crops, where actors send these alone.

    Yields:
        The global step, and the columns of this rank's samples of it.
    """
    place = source.recipe.placement
    if place.render == "workers":
        arriving = data.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=_UNITS_AHEAD)
    else:
        tables = data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=_UNITS_AHEAD)
        arriving = ahead(rendered(source, tables, place.threads, gpu, tell), _UNITS_AHEAD)
    finish = CropTaskRenderer(source.recipe, threads) if sends_crops(source) else None
    for step, columns in batches(source.schedule, source.step, rank, world, arriving):
        if finish is not None:
            finish(columns, step // source.schedule.steps_per_epoch)
        columns.pop("frames", None)  # the tasks' inputs are made of them, no label is
        if not source.image:
            columns.pop("image", None)
        yield step, columns


def open_source(recipe: Recipe, epoch: int = 0, center: bool = False, whole: bool = False) -> UnitSource:
    """One epoch of a recipe's corpus, every sample once, in training order; the last batch is padded with empty places.

    Args:
        recipe: the recipe.
        epoch: number of the epoch.
        center: as for `Source`.
        whole: make a unit of each window, so that units end to end are in training order.
    """
    corpus = open_training_corpus(recipe.corpus)
    geometry = Geometry.of(recipe.training.order, recipe.training.batch, row_bytes(recipe))
    if whole:
        geometry = replace(geometry, groups=1)
    schedule = Schedule(corpus.counts, geometry, recipe.seed, epoch + 1, tail="pad", portions=corpus.portions)
    return UnitSource(recipe, corpus, schedule, epoch * schedule.steps_per_epoch, center)


def dataset(recipe: Recipe, epoch: int = 0) -> ray.data.Dataset:
    """One epoch of pairs as a Ray Dataset, for a pipeline of the user's own: rows, columns and order are those of `pairs`.

    All columns are numbers, so `iter_torch_batches`, `iter_batches(batch_format="pandas")` and `streaming_split` take it as
    it is. Samples that could not be decoded are left out and counted (Prometheus series `quarantined`); with more than
    `failures.budget` allows, whoever reads the dataset is given Ray's error with the words of `BudgetExceeded`. Connects to
    Ray as the commands do (`pipeline.streaming.connection`), if this process is not connected yet.

    Read here, Ray prints an error that is none, of constructor arguments in the object store (its issue 53727); read by
    `streaming_split(1)`, it does not.
    """
    from pipeline.rendering.quarantine import Quarantine

    connect_ray()
    import ray

    workers = recipe.placement.model_copy(update={"render": "workers"})
    source = open_source(settled(recipe.model_copy(update={"placement": workers})), epoch, whole=True)
    quarantine = ray.remote(num_cpus=0)(Quarantine).remote(recipe.failures.budget, source.corpus.samples)
    return _planned(source, _MakePairs, (source, quarantine), recipe.placement.gpus, unsplit=False)


def pairs(recipe: Recipe, epoch: int = 0) -> Iterator[Columns]:
    """One epoch of pairs without Ray: `for batch in pairs(recipe): ...`.

    Images are decoded in a child process, so that one that kills its decoder is left out and ends nothing.

    Yields:
        Columns as in `pipeline.rendering.renderer.Pairs`, of at most `training.batch` samples; those that could not be decoded
        are left out.

    Raises:
        BudgetExceeded: when more samples are bad than the recipe allows.
    """
    from pipeline.rendering.quarantine import Quarantine

    source = open_source(recipe, epoch)
    crops = engine_name(recipe) == "cpu" and not with_views(recipe.tasks, recipe.image.size)
    threads = recipe.placement.threads
    finish = CropTaskRenderer(recipe, threads)
    quarantine = Quarantine(recipe.failures.budget, source.corpus.samples)
    with closing(UnitRenderer(_without_tasks(source) if crops else source, threads, aside=True)) as render:
        made = (render(source.read(number)) for number in range(source.schedule.units(source.step)))
        for _, columns in batches(source.schedule, source.step, 0, 1, made):
            quarantine.add(len(columns["id"]), columns["failure"])
            if crops:
                finish(columns, epoch)
            if good := _good(columns):
                yield good


def _good(columns: Columns) -> Columns:
    """The rows that became pairs, without the columns that are for the way; empty where there are none."""
    good = columns["weight"] > 0
    chosen = slice(None) if good.all() else good  # a mask copies
    return {name: column[chosen] for name, column in columns.items() if name not in _INTERNAL} if good.any() else {}
