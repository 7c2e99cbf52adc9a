"""The Ray Data plan for training: unit numbers -> a pool of actors -> units of pairs, in order.

Only numbers enter the plan; each actor reads what its unit needs from the shards. With placement `workers` the actors render and
send pixels; with `trainer` they send encoded bytes, and `rendered` turns those into pixels beside the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.engines import settled
from pipeline.order import Geometry, Schedule
from pipeline.recipe.schema import Recipe
from pipeline.render import Columns
from pipeline.shards.corpus import Sample
from pipeline.shards.opening import open_corpus
from pipeline.units import EncodedUnit, Source, UnitRenderer, row_bytes

if TYPE_CHECKING:
    import ray.data


class _RenderUnits:
    """Actor of placement `workers`: read, check, draw and render, fused."""

    def __init__(self, source: Source, threads: int) -> None:
        self._make = source.maker(threads)

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[Columns]:
        for number in batch["id"]:
            yield self._make(int(number))


class _ReadUnits:
    """Actor of placement `trainer`: read only; the bytes go out as they are."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[Any]:
        import pyarrow as pa

        for number in batch["id"]:
            unit = self._source.read(int(number))
            n = len(unit.samples)
            columns = {
                name: pa.array([getattr(s, name) for s in unit.samples], kind)
                for name, kind in (
                    ("key", pa.string()),
                    ("id", pa.uint64()),
                    ("ext", pa.string()),
                    ("label", pa.int32()),
                    ("problem", pa.string()),
                )
            }
            encoded = pa.array([s.encoded for s in unit.samples], pa.large_binary())
            yield pa.table({**columns, "encoded": encoded, "unit": [unit.number] * n, "read": [unit.read_seconds] * n})


def units(source: Source) -> ray.data.Dataset:
    """The units of a source as a Ray Dataset: one block a unit, in the order of the schedule."""
    import ray.data

    recipe = source.recipe
    place = recipe.placement
    context = ray.data.DataContext.get_current().copy()  # the caller's own settings stay as they are
    context.execution_options.preserve_order = True
    context.target_max_block_size = 2**30  # a unit is never split
    context.enable_progress_bars = False
    renders = place.render == "workers"
    with ray.data.DataContext.current(context):
        numbers = ray.data.range(source.schedule.units(source.step), override_num_blocks=1)
        return numbers.repartition(target_num_rows_per_block=1).map_batches(
            _RenderUnits if renders else _ReadUnits,
            fn_constructor_args=(source, place.threads) if renders else (source,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=place.actors),
            num_cpus=place.cpus,
            num_gpus=place.gpus if renders else 0,
        )


def rendered(source: Source, tables: Iterable[Any], threads: int, gpu: int = 0) -> Iterator[Columns]:
    """Placement `trainer`, on the rank: encoded units, as Arrow tables, to columns of pairs; `gpu` is the rank's own."""
    render = UnitRenderer(source, threads, gpu)
    for table in tables:
        number = int(table["unit"][0].as_py())
        epoch, rows = source.schedule.unit(number, source.step)
        encoded = [memoryview(value.as_buffer()).cast("B") for chunk in table["encoded"].chunks for value in chunk]
        meta = table.select(["key", "id", "ext", "label", "problem"]).to_pylist()
        samples = [Sample(encoded=data, **row) for data, row in zip(encoded, meta)]
        yield render(EncodedUnit(number, epoch, rows, samples, float(table["read"][0].as_py())))


def open_source(recipe: Recipe, epoch: int = 0, center: bool = False) -> Source:
    """One epoch of a recipe's corpus, every sample once, in training order; the last batch is padded with empty places."""
    corpus = open_corpus(recipe.corpus.shards, recipe.corpus.image)
    geometry = Geometry.of(recipe.training.order, recipe.training.batch, row_bytes(recipe))
    schedule = Schedule(corpus.counts, geometry, recipe.seed, epoch + 1, tail="pad")
    return Source(recipe, corpus, schedule, epoch * schedule.steps_per_epoch, center)


def dataset(recipe: Recipe, epoch: int = 0) -> ray.data.Dataset:
    """One epoch of pairs as a Ray Dataset, for a pipeline of the user's own.

    Columns as `pipeline.units.UnitRenderer` gives them; rows of weight 0 could not be decoded (`failure` says why) or
    fill the last batch.
    """
    workers = recipe.placement.model_copy(update={"render": "workers"})
    return units(open_source(settled(recipe.model_copy(update={"placement": workers})), epoch))


def pairs(recipe: Recipe, epoch: int = 0) -> Iterator[Columns]:
    """One epoch of pairs in this process, without Ray: `for batch in pairs(recipe): ...`.

    Yields:
        Columns as in `pipeline.render.Pairs`, of at most `training.batch` samples, those that could not be decoded left out.

    Raises:
        BudgetExceeded: when more samples are bad than the recipe allows.
    """
    from pipeline.batches import batches
    from pipeline.quarantine import Quarantine

    source = open_source(recipe, epoch)
    render = UnitRenderer(source, recipe.placement.threads)
    quarantine = Quarantine(recipe.failures.budget, source.corpus.samples)
    made = (render(source.read(number)) for number in range(source.schedule.units(source.step)))
    for _, columns in batches(source.schedule, source.step, 0, 1, made):
        quarantine.add(len(columns["id"]), columns["failure"])
        good = columns["weight"] > 0
        if good.any():
            yield {name: column[good] for name, column in columns.items() if name not in ("unit", "seconds", "failure")}
