"""The Ray Data plan for training: unit numbers -> a pool of actors -> units of pairs, in order.

Only numbers enter the plan; each actor reads what its unit needs from the shards. With placement `workers` the actors decode and
send pixels (crops, or whole pairs, see `sends_crops`); with `trainer` they send encoded bytes, and `rendered` turns those into
pixels beside the network.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.engines import with_views
from pipeline.recipe.schema import Recipe
from pipeline.rendering.crash_safe import this_job
from pipeline.rendering.renderer import Columns
from pipeline.rendering.tasks_on_crops import CropTaskRenderer
from pipeline.rendering.units import EncodedUnit, UnitRenderer, UnitSource, row_bytes
from pipeline.shards.corpus import Corpus, Sample
from pipeline.streaming.batches import ahead, batches
from pipeline.streaming.memory import freeze_loaded, keep_memory
from pipeline.streaming.metrics import Meter
from pipeline.streaming.pace import give_way, plan_settings

if TYPE_CHECKING:
    import ray.data

_UNITS_AHEAD = 2
_WINDOWS_AHEAD = 2  # windows that may wait for the ranks
_TASKS_OF_AN_ACTOR = 4  # units that Ray gives to an actor at a time
_ROW_BYTES = 2**10  # of a row's columns besides its pixels, generously
_NUMBER_BYTES = 32  # of a unit's number; Ray counts the block of all numbers, 8 bytes each, as long as any is left
_SPARE = 2.0  # for masks and the like, and since Ray keeps a part of the memory for the operator that hands out numbers


StageReport = Callable[[str, str, int], None]
"""Called with the name of an actor's process, what it does (`start`, a stage, or `idle`) and the number of the unit."""


class _StageReporter:
    """Reports what an actor does, under the name of its process."""

    def __init__(self, report: StageReport | None) -> None:
        self._callback, self._name = report, f"{socket.gethostname()}, process {os.getpid()}"
        self("start")

    def __call__(self, stage: str, unit: int = -1) -> None:
        if self._callback is not None:
            self._callback(self._name, stage, unit)


class _RenderUnits:
    """Actor of placement `workers`: reads, checks, draws and renders units."""

    def __init__(self, sources: Sequence[UnitSource], report: StageReport | None, tasks: int, threads: int) -> None:
        give_way()
        keep_memory()
        self._sources, self._report, self._threads = sources, _StageReporter(report), threads
        self._meter, self._tasks = Meter(sources[0].recipe.name, "training"), tasks
        self._made = 0, self._maker(0)
        freeze_loaded()
        self._report("idle")

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[Columns]:
        for number in batch["id"].tolist():
            which, unit = place_of(self._sources, number)
            if which != self._made[0]:
                self._made = which, self._maker(which)
            columns = self._made[1](unit)
            self._report("idle")
            yield self._meter.unit(columns, self._tasks)

    def _maker(self, which: int) -> Callable[[int], Columns]:
        before = sum(map(_count, self._sources[:which]))
        return self._sources[which].maker(self._threads, lambda stage, unit: self._report(stage, before + unit))


class _ReadUnits:
    """Actor of placement `trainer`: reads units, and sends their bytes as they are."""

    def __init__(self, sources: Sequence[UnitSource], report: StageReport | None) -> None:
        give_way()
        self._sources, self._report = sources, _StageReporter(report)
        self._meter = Meter(sources[0].recipe.name, "training")
        self._report("idle")

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[Any]:
        import pyarrow as pa

        for number in batch["id"].tolist():
            self._report("read", number)
            which, within = place_of(self._sources, number)
            unit = self._sources[which].read(within)
            self._report("idle")
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
                    ("annotations", pa.list_(pa.int64())),
                    ("weights", pa.list_(pa.float32())),
                )
            }
            encoded, target = (
                pa.array([getattr(s, name) for s in unit.samples], pa.large_binary()) for name in ("encoded", "target")
            )
            self._meter.traffic()
            yield pa.table(
                {**columns, "encoded": encoded, "target": target, "unit": [unit.number] * n, "read": [list(unit.read)] * n}
            )


def sends_crops(source: UnitSource) -> bool:
    """Whether actors send only crops, from which the training worker makes the pairs (`pipeline.rendering.tasks_on_crops`).

    The inputs of four tasks have four times the bytes of their crop, and moving a byte between processes costs more than making
    it from the crop. Only the CPU engine makes the same pixels in every process. Views are not made from the crop.
    """
    recipe = source.recipe
    plain = (
        type(source) is UnitSource and source.target is None and recipe.placement.render == "workers" and recipe.engine == "cpu"
    )
    return plain and bool(recipe.tasks) and not with_views(recipe.tasks, recipe.image.size)


def without_tasks(source: UnitSource) -> UnitSource:
    """The source whose units are crops alone."""
    training = source.recipe.training.model_copy(update={"tasks_per_sample": "all"})
    return replace(source, recipe=source.recipe.model_copy(update={"tasks": {}, "training": training}))


def sent_bytes(recipe: Recipe) -> int:
    """Estimate the bytes that an actor sends for a row, once the engine is settled; a file counts as large as its crop."""
    views = with_views(recipe.tasks, recipe.image.size)
    whole = recipe.placement.render == "workers" and (recipe.engine != "cpu" or bool(views))
    return row_bytes(recipe) if whole else 3 * recipe.image.size**2 * (1 + (recipe.corpus.frames or 0))


def file_bytes(recipe: Recipe, corpus: Corpus) -> float:
    """The mean size of a row's files in bytes, where actors send files; else 0."""
    return corpus.sizes.sum() / max(corpus.samples, 1) if recipe.placement.render == "trainer" else 0.0


def units(sources: Sequence[UnitSource], report: StageReport | None = None, crops: bool = False) -> ray.data.Dataset:
    """The units of some sources, one source after the other, as a Ray Dataset: one block a unit, in the order of the schedule.

    The same actors make the units of all of them: several short sources start no more processes than one.

    Args:
        sources: what to read or render, with the same `placement`.
        report: called by the actors with what they do; units are counted through all sources.
        crops: send only crops where `sends_crops` says so; `steps` makes the pairs of them.
    """
    recipe = sources[0].recipe
    tasks, place = len(recipe.tasks), recipe.placement
    if crops:
        sources = [without_tasks(source) if sends_crops(source) else source for source in sources]
    if place.render == "trainer":
        return planned(sources, _ReadUnits, (sources, report), gpus=0, unsplit=True)
    return planned(sources, _RenderUnits, (sources, report, tasks, place.threads), place.gpus, unsplit=True)


def place_of(sources: Sequence[UnitSource], number: int) -> tuple[int, int]:
    """Which source has unit `number`, where units are counted through all of them, and the unit's number in that source."""
    for which, source in enumerate(sources):
        if number < (count := _count(source)):
            return which, number
        number -= count
    raise IndexError(f"the sources have {number} units fewer")


def _count(source: UnitSource) -> int:
    return source.schedule.units(source.step)


def planned(sources: Sequence[UnitSource], actor: type, args: tuple[Any, ...], gpus: float, unsplit: bool) -> ray.data.Dataset:
    """The dataset that actors make of the sources' unit numbers, in order; `unsplit` keeps each unit in one block."""
    import ray.data

    place, context = sources[0].recipe.placement, plan_settings(ordered=True)
    if unsplit:
        context.target_max_block_size = None  # else Ray splits a block of 1.5 times this size
        limits = context.execution_options.resource_limits
        most = min(limits.object_store_memory, _bytes_ahead(sources))
        context.execution_options.resource_limits = limits.copy(object_store_memory=most)
    with ray.data.DataContext.current(context):
        numbers = ray.data.range(sum(map(_count, sources)), override_num_blocks=1)
        return numbers.repartition(target_num_rows_per_block=1).map_batches(
            actor,
            fn_constructor_args=args,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=place.actors),
            num_cpus=place.cpus,
            num_gpus=gpus,
        )


def _bytes_ahead(sources: Sequence[UnitSource]) -> float:
    """How many bytes of units may lie in the object store.

    Ray's own limit is half of the store. Until that is full, which for small crops takes minutes, actors would render as fast as
    they can, and take the processors from the network on the same machine.
    """
    actors, most = sources[0].recipe.placement.actors, 0.0
    for source in sources:
        geometry = source.schedule.geometry
        row = (file_bytes(source.recipe, source.corpus) or row_bytes(source.recipe)) + _ROW_BYTES
        unit = row * geometry.unit_rows * geometry.window
        most = max(most, unit * (_WINDOWS_AHEAD * geometry.groups + _TASKS_OF_AN_ACTOR * actors))
    return _SPARE * most + _NUMBER_BYTES * sum(map(_count, sources))


def rendered(
    source: UnitSource,
    tables: Iterable[Any],
    threads: int,
    gpu: int | None = None,
    report: StageReport | None = None,
    before: int = 0,
) -> Iterator[Columns]:
    """Render encoded units (Arrow tables) to columns of pairs, on the rank, in placement `trainer`; pixels stay on its `gpu`.

    What is reported counts `before` units before this source's first.
    """
    render = UnitRenderer(source, threads, gpu, run=this_job())  # a training worker that dies is replaced by another
    stage, meter = _StageReporter(report), Meter(source.recipe.name, "training")
    for table in tables:
        number = int(table["unit"][0].as_py())
        stage("render", before + number)
        epoch, rows = source.schedule.unit(number, source.step)
        encoded = [memoryview(value.as_buffer()).cast("B") for chunk in table["encoded"].chunks for value in chunk]
        meta = table.select(["key", "id", "ext", "label", "problem", "sizes", "annotations", "weights", "target"]).to_pylist()
        samples = [Sample(encoded=data, **row) for data, row in zip(encoded, meta)]
        unit = render(EncodedUnit(number, epoch, rows, samples, tuple(table["read"][0].as_py())))
        stage("idle")
        yield meter.unit(unit, len(source.recipe.tasks))


def steps(
    sources: Sequence[UnitSource],
    data: Any,
    rank: int,
    world: int,
    gpu: int | None = None,
    report: StageReport | None = None,
    threads: int = 1,
) -> Iterator[tuple[int, Columns]]:
    """The steps of a training worker, from the units that it receives, in either placement.

    Args:
        sources: the sources of the units, whose steps follow each other.
        data: what `units(sources, crops=True)` gives, or the rank's split of it.
        rank: this rank.
        world: number of ranks.
        gpu: the rank's own GPU; with placement `trainer`, pixels stay on it.
        report: as for `units`.
        threads: CPU threads that render the tasks, where actors send only crops.

    Yields:
        The global step of the source, and the columns of this rank's samples of it.
    """
    decoded = sources[0].recipe.placement.render == "workers"
    arriving = iter(
        data.iter_batches(batch_size=None, batch_format="numpy" if decoded else "pyarrow", prefetch_batches=_UNITS_AHEAD)
    )
    for which, source in enumerate(sources):
        own: Iterable[Any] = islice(arriving, _count(source) // world)
        if not decoded:
            before = sum(map(_count, sources[:which]))
            own = ahead(rendered(source, own, source.recipe.placement.threads, gpu, report, before), _UNITS_AHEAD)
        finish = CropTaskRenderer(source.recipe, threads) if sends_crops(source) else None
        for step, columns in batches(source.schedule, source.step, rank, world, own):
            if finish is not None:
                finish(columns, step // source.schedule.steps_per_epoch)
            columns.pop("frames", None)  # inputs of tasks are made of them, labels are not
            if not source.image:
                columns.pop("image", None)
            yield step, columns
