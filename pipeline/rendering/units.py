"""Reads and renders the units of the order, one at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from pipeline.draws import Draws, hash64
from pipeline.engines import pixel_shapes
from pipeline.ordering.order import Schedule, UnitRows
from pipeline.recipe.schema import Recipe
from pipeline.rendering.crash_safe import CrashSafeRenderer
from pipeline.rendering.renderer import Clock, Columns
from pipeline.shards.corpus import Corpus, Sample
from pipeline.storage import without_secrets
from pipeline.targets import Target

STAGES = ("read", "check", "render", "tasks")
"""The stages from a sample to its pairs. `tasks` is what a training worker renders from crops, see
`pipeline.rendering.tasks_on_crops`; elsewhere it is part of `render`."""

_EMPTY = Sample(key="", id=0, encoded=b"", ext="", label=-1, problem="an empty place at the end of the corpus")


@dataclass(frozen=True)
class UnitSource:
    """What an actor or a rank needs to make units; picklable, and small.

    Args:
        recipe: the recipe.
        corpus: the indexed shards.
        schedule: the order of the run.
        step: the first step; units are counted from here.
        center: render as evaluation does, see `Renderer`.
        image: whether steps hold the crop itself too; needed only where a label is made of its pixels.
        target: what labelled samples ask for; None where labels do not matter.
    """

    recipe: Recipe
    corpus: Corpus
    schedule: Schedule
    step: int = 0
    center: bool = False
    image: bool = True
    target: Target | None = None

    def read(self, number: int, within: slice = slice(None)) -> EncodedUnit:
        """Read the samples of unit `number`, or of a part of it, in training order."""
        started = Clock()
        epoch, rows = self.schedule.unit(number, self.step)
        rows = rows.part(within)
        samples: list[Sample] = [_EMPTY] * len(rows)
        for shard in np.unique(rows.shards[rows.shards >= 0]):
            places = np.flatnonzero(rows.shards == shard)
            for place, sample in zip(places, self.corpus.read(int(shard), rows.rows[places])):
                again = int(rows.again[place])  # a photo that comes again in an epoch of a mixture is drawn anew
                sample = sample if self.target is None else self.target.asked(sample)
                samples[place] = replace(sample, id=hash64("again", sample.id, again)) if again else sample
        return EncodedUnit(number, epoch, rows, samples, Clock().since(started))

    def corpora(self, rows: UnitRows) -> np.ndarray:
        """The corpus of each row of a mixture, by number: int64 (n,), -1 for empty places."""
        ends = np.cumsum([portion.shards for portion in self.corpus.portions])
        return np.where(rows.shards < 0, -1, np.searchsorted(ends, rows.shards, side="right"))

    def maker(self, threads: int, report: Callable[[str, int], None]) -> Callable[[int], Columns]:
        """A function that takes the number of a unit and returns its columns, see `UnitRenderer`.

        Args:
            threads: the engine's threads.
            report: called with stage and unit as each stage begins.
        """
        render = UnitRenderer(self, threads)

        def make(number: int) -> Columns:
            report("read", number)
            unit = self.read(number)
            report("render", number)
            return render(unit)

        return make


@dataclass
class EncodedUnit:
    """A unit's samples, encoded as they are in the shards."""

    number: int
    epoch: int
    rows: UnitRows
    samples: list[Sample]
    read: tuple[float, float]
    """Wall-clock and CPU seconds that reading took."""

    def parts(self, rows: int) -> Iterator[EncodedUnit]:
        """Split the unit into parts of `rows` rows, each with its share of the time."""
        n = len(self.samples)
        for start in range(0, n, rows):
            here = slice(start, start + rows)
            samples = self.samples[here]
            wall, cpu = (seconds * len(samples) / n for seconds in self.read)
            yield replace(self, rows=self.rows.part(here), samples=samples, read=(wall, cpu))


class UnitRenderer:
    """Turns encoded units into columns of pairs.

    Besides the columns of `Pairs` there are `unit` int64, its number; `seconds` float32 (n, 8), wall-clock seconds an image of
    each of `STAGES`, then CPU seconds of each; and `failure`: an empty string, or JSON with shard, key, row and reason of a
    sample that could not be decoded. In a mixture `corpus` int64 is the number of each sample's corpus, -1 for empty places.

    Args:
        source: what to render.
        threads: CPU threads of the engine.
        gpu: as for `Renderer`.
        in_child: as for `CrashSafeRenderer`.
        run: as for `CrashSafeRenderer`.
    """

    def __init__(
        self, source: UnitSource, threads: int, gpu: int | None = None, in_child: bool = False, run: str | None = None
    ) -> None:
        self._source = source
        self._render = CrashSafeRenderer(
            source.recipe, threads, source.center, gpu, in_child, source.image, source.target, run=run
        )

    def close(self) -> None:
        """Release the child process, if there is one."""
        self._render.close()

    def __call__(self, unit: EncodedUnit) -> Columns:
        pairs = self._render(unit.samples, unit.epoch)
        n = len(unit.samples)
        return {
            **pairs.columns,
            **chosen_task(self._source.recipe, unit.epoch, pairs.columns["id"]),
            "unit": np.full(n, unit.number, np.int64),
            "seconds": seconds_column(
                n, {"read": unit.read, **{name: (pairs.seconds[name], pairs.cpu[name]) for name in pairs.seconds}}
            ),
            **({"corpus": self._source.corpora(unit.rows)} if self._source.corpus.portions else {}),
            "failure": self._failures(unit, pairs.failures),
        }

    def _failures(self, unit: EncodedUnit, reasons: Mapping[int, str]) -> np.ndarray:
        column = np.full(len(unit.samples), "", object)
        for i, reason in reasons.items():
            column[i] = self._failure(unit, i, reason)
        return column

    def _failure(self, unit: EncodedUnit, i: int, reason: str) -> str:
        shard = int(unit.rows.shards[i])
        if shard < 0:  # an empty place
            return ""
        corpus = self._source.corpus
        row = corpus.row(shard, int(unit.rows.rows[i]))
        return json.dumps(
            {"shard": without_secrets(corpus.urls[shard]), "key": unit.samples[i].key, "row": row, "reason": reason}
        )


def seconds_column(n: int, spent: Mapping[str, tuple[float, float]]) -> np.ndarray:
    """The column `seconds` of a unit of n samples, from the wall-clock and CPU seconds of some of `STAGES`."""
    row = np.array([spent.get(stage, (0.0, 0.0)) for stage in STAGES], np.float32).T.ravel()
    return np.tile(row / max(n, 1), (n, 1))


def row_bytes(recipe: Recipe) -> int:
    """Bytes of one rendered row: the crop, its frames, and each task's pixels and mask."""
    size = recipe.image.size
    total = size * size * 3 * (1 + (recipe.corpus.frames or 0))
    total += sum(math.prod(shape) for shape in pixel_shapes(recipe.tasks, size, crop=False).values())
    return total + size * size * sum(getattr(task.label_kind(), "masked", False) for task in recipe.tasks.values())


def chosen_task(recipe: Recipe, epoch: int, ids: np.ndarray) -> Columns:
    """The column `task`, int64 (n,): the number of each sample's task, where each sample trains one; else no column."""
    if recipe.training.tasks_per_sample == "all":
        return {}
    return {"task": Draws(recipe.seed, epoch, ids).stream("task").integers("which", len(recipe.tasks))}
