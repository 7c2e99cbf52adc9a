"""Rendering that outlives its decoder: the crash of a process is confined to the sample that causes it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.draws import hash64
from pipeline.errors import RunError
from pipeline.isolate import find_killers
from pipeline.marks import Marks
from pipeline.recipe.schema import Recipe
from pipeline.render import Pairs, Renderer
from pipeline.shards.corpus import Sample

_MOST_DEATHS = 3
_KILLER = "killer-"


class SurvivingRenderer:
    """A `Renderer` that remembers, on this machine's disk, at what a process died, and leaves the sample out that did it.

    Args:
        recipe: the recipe.
        threads: CPU threads of the engine.
        center: as for `Renderer`.
        gpu: as for `Renderer`.
    """

    def __init__(self, recipe: Recipe, threads: int = 1, center: bool = False, gpu: int | None = None) -> None:
        self._recipe, self._center = recipe, center
        self._renderer = Renderer(recipe, threads, center, gpu)
        # Killers are remembered for the recipe and the decoder's version: a run that restarts comes upon them again.
        identity = hash64(recipe.digest(), *(f"{k} {v}" for k, v in sorted(self._renderer.engine.identity().items())))
        self._folder = Path(tempfile.gettempdir()) / f"pseudolabel-{os.getuid()}" / f"{identity:016x}"
        self._marks = Marks(self._folder)
        self._killers = {int(file.name.removeprefix(_KILLER), 16): file.read_text() for file in self._folder.glob(f"{_KILLER}*")}

    def engine_identity(self) -> dict[str, str]:
        """What the engine says of itself."""
        return self._renderer.engine.identity()

    def __call__(self, samples: Sequence[Sample], epoch: int) -> Pairs:
        """Render as `Renderer` does; a sample that kills the decoder is a failure with that reason.

        Raises:
            RunError: processes died at these samples again and again, though each of them can be rendered alone.
        """
        if not samples:
            return self._renderer(samples, epoch)
        name = f"unit-{epoch}-{samples[0].id:016x}-{samples[-1].id:016x}"
        if deaths := self._marks.deaths(name):
            self._look(samples, epoch, deaths)
        with self._marks.at(name):
            return self._renderer([self._unless_killer(sample) for sample in samples], epoch)

    def _look(self, samples: Sequence[Sample], epoch: int, deaths: int) -> None:
        """A process died while it worked on these: find out, in another process, whether a sample did it."""
        samples = [self._unless_killer(sample) for sample in samples]
        killers = find_killers(samples, self._recipe, epoch, self._center)
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
