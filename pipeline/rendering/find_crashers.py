"""Finds the images that kill their decoder's process, by rendering sample after sample in a child process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from pipeline.engines import with_views
from pipeline.processes.child import MOST_KILLS_FROM_OUTSIDE, ChildProcess, Died
from pipeline.recipe.schema import Recipe
from pipeline.shards.corpus import Sample


class Renderings:
    """What `ChildProcess` makes for rendering; arguments as of `pipeline.rendering.renderer.Renderer`."""

    def __init__(self, recipe: Recipe, threads: int, center: bool) -> None:
        from pipeline.rendering.renderer import Renderer

        self._render = Renderer(recipe, threads, center)

    def identity(self) -> Iterator[dict[str, str]]:
        """The engine's identity."""
        yield self._render.engine.identity()

    def batch(self, samples: Sequence[Sample], epoch: int) -> Iterator[Any]:
        """The samples' `Pairs`."""
        yield self._render(samples, epoch)

    def each(self, samples: Sequence[Sample], epoch: int) -> Iterator[None]:
        """Render one sample after another, and say after each that it was survived."""
        for sample in samples:
            self._render([sample], epoch)
            yield None


def portable(samples: Sequence[Sample]) -> list[Sample]:
    """Samples whose bytes can be sent to another process."""
    return [replace(sample, encoded=bytes(sample.encoded)) for sample in samples]


def find_crashers(samples: Sequence[Sample], recipe: Recipe, epoch: int, center: bool) -> dict[int, str]:
    """Decode each sample as `Renderer` would, outside this process.

    Args:
        samples: the samples of a unit on which a process died.
        recipe: the recipe; of its tasks only those matter that cut their own windows, for these are decoded.
        epoch: the epoch, which the windows depend on.
        center: as for `Renderer`.

    Returns:
        The reason for each sample that killed the process, by position.

    Raises:
        RunError: the process could not start, or failed without being killed.
    """
    killers: dict[int, str] = {}
    start = shot = 0
    aside = ChildProcess(Renderings, recipe.model_copy(update={"tasks": with_views(recipe.tasks, recipe.image.size)}), 1, center)
    try:
        while start < len(samples):
            survived = 0
            try:
                for _ in aside.call("each", portable(samples[start:]), epoch):
                    survived += 1
                break
            except Died as death:
                start += survived
                if start == len(samples):  # of none of them
                    break
                if death.from_outside and shot < MOST_KILLS_FROM_OUTSIDE:
                    shot += 1
                else:
                    killers[start] = death.reason
                    start, shot = start + 1, 0
    finally:
        aside.end()
    return killers
