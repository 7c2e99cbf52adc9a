"""One epoch of pairs for loops and pipelines of the user's own: a Ray Dataset, or batches without Ray."""

from __future__ import annotations

from collections.abc import Iterator
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
from pipeline.shards.opening import open_training_corpus
from pipeline.streaming.batches import batches
from pipeline.streaming.connection import connect_ray
from pipeline.streaming.memory import freeze_loaded, keep_memory
from pipeline.streaming.metrics import Meter
from pipeline.streaming.pace import give_way
from pipeline.streaming.plan import planned, without_tasks

if TYPE_CHECKING:
    import ray.data

_READ_BYTES = 128 * 2**20  # read at a time of a window of `dataset`
_INTERNAL = ("unit", "seconds", "failure")


def open_source(recipe: Recipe, epoch: int = 0, center: bool = False, whole: bool = False) -> UnitSource:
    """One epoch of a recipe's corpus, every sample once, in training order; the last batch is padded with empty places.

    Args:
        recipe: the recipe.
        epoch: number of the epoch.
        center: as for `UnitSource`.
        whole: make one unit of each window, so that the units one after the other are in training order.
    """
    corpus = open_training_corpus(recipe.corpus, seed=recipe.seed)
    geometry = Geometry.of(recipe.training.order, recipe.training.batch, row_bytes(recipe))
    if whole:
        geometry = replace(geometry, groups=1)
    schedule = Schedule(corpus.counts, geometry, recipe.seed, epoch + 1, tail="pad", portions=corpus.portions)
    return UnitSource(recipe, corpus, schedule, epoch * schedule.steps_per_epoch, center)


class _MakePairs:
    """Actor of `dataset`: reads a window of steps, and renders it step by step."""

    def __init__(self, source: UnitSource, quarantine: Any) -> None:
        give_way()
        keep_memory()
        self._source, self._quarantine = source, quarantine
        self._render = UnitRenderer(source, source.recipe.placement.threads)
        self._meter = Meter(source.recipe.name, "training")
        freeze_loaded()

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[Columns]:
        import ray

        for number in batch["id"]:
            for part in self._steps(int(number)):
                columns = self._meter.unit(self._render(part), len(self._source.recipe.tasks))
                ray.get(self._quarantine.add.remote(len(columns["id"]), [text for text in columns["failure"] if text]))
                if good := _good(columns):
                    yield good

    def _steps(self, window: int) -> Iterator[EncodedUnit]:
        """The steps of a window; as many are read at a time as `_READ_BYTES` allows."""
        geometry, corpus = self._source.schedule.geometry, self._source.corpus
        step_bytes = geometry.batch * corpus.sizes.sum() / corpus.samples
        rows = geometry.batch * max(1, int(_READ_BYTES / step_bytes))
        for start in range(0, geometry.batch * geometry.window, rows):
            yield from self._source.read(window, slice(start, start + rows)).parts(geometry.batch)


def dataset(recipe: Recipe, epoch: int = 0) -> ray.data.Dataset:
    """One epoch of pairs as a Ray Dataset, for a pipeline of the user's own: rows, columns and order are those of `pairs`.

    All columns are numbers, so `iter_torch_batches`, `iter_batches(batch_format="pandas")` and `streaming_split` take it as
    it is. Samples that could not be decoded are left out and counted (Prometheus series `quarantined`); with more than
    `failures.budget` allows, reading the dataset raises Ray's error with the message of `BudgetExceeded`. Connects to
    Ray as the commands do (`pipeline.streaming.connection`), if this process is not connected yet.

    Where this process itself reads the dataset, Ray prints a harmless error about constructor arguments in the object store
    (Ray's issue 53727); with `streaming_split(1)` it does not.
    """
    from pipeline.rendering.quarantine import Quarantine

    connect_ray()
    import ray

    workers = recipe.placement.model_copy(update={"render": "workers"})
    source = open_source(settled(recipe.model_copy(update={"placement": workers})), epoch, whole=True)
    quarantine = ray.remote(num_cpus=0)(Quarantine).remote(recipe.failures.budget, source.corpus.samples)
    return planned((source,), _MakePairs, (source, quarantine), recipe.placement.gpus, unsplit=False)


def pairs(recipe: Recipe, epoch: int = 0) -> Iterator[Columns]:
    """Iterate over one epoch of pairs without Ray: `for batch in pairs(recipe): ...`.

    Images are decoded in a child process, so that an image that crashes its decoder is left out, and the loop goes on.

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
    with closing(UnitRenderer(without_tasks(source) if crops else source, threads, in_child=True)) as render:
        made = (render(source.read(number)) for number in range(source.schedule.units(source.step)))
        for _, columns in batches(source.schedule, source.step, 0, 1, made):
            quarantine.add(len(columns["id"]), columns["failure"])
            if crops:
                finish(columns, epoch)
            if good := _good(columns):
                yield good


def _good(columns: Columns) -> Columns:
    """The rows that became pairs, without the internal columns; empty where no row did."""
    good = columns["weight"] > 0
    chosen = slice(None) if good.all() else good  # a mask copies
    return {name: column[chosen] for name, column in columns.items() if name not in _INTERNAL} if good.any() else {}
