"""One unit of the order at a time: read it, render it, and confine the crash of a decoder to the sample that causes it."""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.draws import hash64
from pipeline.errors import RunError
from pipeline.isolate import find_killers
from pipeline.marks import Marks
from pipeline.order import Rows, Schedule
from pipeline.recipe.schema import Recipe
from pipeline.render import Columns, Renderer
from pipeline.shards.corpus import Corpus, Sample

STAGES = ("read", "check", "render")
_MOST_DEATHS = 3
_KILLER = "killer-"
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
    """

    def __init__(self, source: Source, threads: int) -> None:
        self._source = source
        self._renderer = Renderer(source.recipe, threads, source.center)
        # Killers are remembered for the recipe and the decoder's version: a run that restarts comes upon them again.
        identity = hash64(source.recipe.digest(), *(f"{k} {v}" for k, v in sorted(self._renderer.engine.identity().items())))
        self._folder = Path(tempfile.gettempdir()) / f"pseudolabel-{os.getuid()}" / f"{identity:016x}"
        self._marks = Marks(self._folder)
        self._killers = {int(file.name.removeprefix(_KILLER), 16): file.read_text() for file in self._folder.glob(f"{_KILLER}*")}

    def __call__(self, unit: EncodedUnit) -> Columns:
        with self._marks.at(f"unit-{unit.epoch}-{unit.samples[0].id:016x}-{unit.samples[-1].id:016x}") as deaths:
            if deaths:
                self._look(unit, deaths)
            pairs = self._renderer([self._unless_killer(sample) for sample in unit.samples], unit.epoch)
        n = len(unit.samples)
        seconds = np.array([unit.read_seconds, pairs.seconds["check"], pairs.seconds["render"]], np.float32) / n
        return {
            **pairs.columns,
            "unit": np.full(n, unit.number, np.int64),
            "seconds": np.tile(seconds, (n, 1)),
            "failure": np.array([self._failure(unit, i, pairs.failures.get(i)) for i in range(n)], object),
        }

    def _look(self, unit: EncodedUnit, deaths: int) -> None:
        """A process died while it worked on this unit: find out, in another process, whether a sample did it."""
        samples = [self._unless_killer(sample) for sample in unit.samples]
        killers = find_killers(samples, self._source.recipe, unit.epoch, self._source.center)
        for i, reason in killers.items():
            self._killers[samples[i].id] = reason
            (self._folder / f"{_KILLER}{samples[i].id:016x}").write_text(reason)
        if not killers and deaths >= _MOST_DEATHS:
            raise RunError(
                f"{deaths} processes died while they rendered the {len(samples)} samples from {samples[0].key} to "
                f"{samples[-1].key}, though each of them can be rendered alone: is there enough memory? "
                "Lower training.batch or placement.actors"
            )

    def _unless_killer(self, sample: Sample) -> Sample:
        return replace(sample, encoded=b"", problem=self._killers[sample.id]) if sample.id in self._killers else sample

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
