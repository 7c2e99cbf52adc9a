"""One unit of the order at a time: read it, render it, and confine the crash of a decoder to the sample that causes it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.order import Rows, Schedule
from pipeline.recipe.schema import Recipe
from pipeline.render import Columns
from pipeline.shards.corpus import Corpus, Sample
from pipeline.survival import SurvivingRenderer

STAGES = ("read", "check", "render")
_EMPTY = Sample(key="", id=0, encoded=b"", ext="", label=-1, problem="an empty place at the end of the corpus")


@dataclass(frozen=True)
class Source:
    """All that an actor or a rank needs to make units: picklable, and small.

    Args:
        recipe: the recipe.
        corpus: the indexed shards.
        schedule: the order of the run.
        step: where in the schedule to begin; units are counted from here.
        center: render as evaluation does, see `Renderer`.
    """

    recipe: Recipe
    corpus: Corpus
    schedule: Schedule
    step: int = 0
    center: bool = False

    def read(self, number: int) -> EncodedUnit:
        """Read the samples of unit `number`, in training order."""
        started = time.perf_counter()
        epoch, rows = self.schedule.unit(number, self.step)
        samples: list[Sample] = [_EMPTY] * len(rows)
        for shard in np.unique(rows.shards[rows.shards >= 0]):
            places = np.flatnonzero(rows.shards == shard)
            for place, sample in zip(places, self.corpus.read(int(shard), rows.rows[places])):
                samples[place] = sample
        return EncodedUnit(number, epoch, rows, samples, time.perf_counter() - started)

    def maker(self, threads: int) -> Callable[[int], Columns]:
        """What turns the number of a unit into its columns, see `UnitRenderer`; `threads` are the engine's."""
        render = UnitRenderer(self, threads)
        return lambda number: render(self.read(number))


@dataclass
class EncodedUnit:
    """A unit's samples as they lie in the shards."""

    number: int
    epoch: int
    rows: Rows
    samples: list[Sample]
    read_seconds: float


class UnitRenderer:
    """Turns encoded units into columns of pairs.

    Besides the columns of `Pairs` there are `unit` int64, `seconds` float32 (n, 3) of read, check and render time an image, and
    `failure`: an empty string, or JSON that names shard, key and reason of a sample that could not be decoded.

    Args:
        source: what to render.
        threads: CPU threads of the engine.
        gpu: which of the visible GPUs the engine uses, where there are any.
    """

    def __init__(self, source: Source, threads: int, gpu: int = 0) -> None:
        self._source = source
        self._render = SurvivingRenderer(source.recipe, threads, source.center, gpu)

    def __call__(self, unit: EncodedUnit) -> Columns:
        pairs = self._render(unit.samples, unit.epoch)
        n = len(unit.samples)
        seconds = np.array([unit.read_seconds, pairs.seconds["check"], pairs.seconds["render"]], np.float32) / n
        return {
            **pairs.columns,
            "unit": np.full(n, unit.number, np.int64),
            "seconds": np.tile(seconds, (n, 1)),
            "failure": np.array([self._failure(unit, i, pairs.failures.get(i)) for i in range(n)], object),
        }

    def _failure(self, unit: EncodedUnit, i: int, reason: str | None) -> str:
        shard = int(unit.rows.shards[i])
        if reason is None or shard < 0:
            return ""
        return json.dumps({"shard": self._source.corpus.urls[shard], "key": unit.samples[i].key, "reason": reason})


def row_bytes(recipe: Recipe) -> int:
    """Bytes of one rendered row: the crop, and each task's input and mask."""
    size = recipe.image.size
    total = size * size * 3
    for task in recipe.tasks.values():
        total += int(np.prod(task.input_shape(size))) + (size * size if getattr(task.label_kind(), "masked", False) else 0)
    return total
