"""Finds the images that crash their decoder's process, by rendering one sample after another in a child process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from pipeline.engines import with_views
from pipeline.processes.child import MOST_KILLS_FROM_OUTSIDE, ChildProcess, Died
from pipeline.recipe.schema import Recipe
from pipeline.shards.corpus import Sample
from pipeline.targets import Target


class ChildRenderer:
    """The renderer that a `ChildProcess` holds; arguments as of `pipeline.rendering.renderer.Renderer`."""

    def __init__(self, recipe: Recipe, threads: int, center: bool, target: Target | None = None) -> None:
        from pipeline.rendering.renderer import Renderer

        self._render = Renderer(recipe, threads, center, target=target)

    def identity(self) -> Iterator[dict[str, str]]:
        """The engine's identity."""
        yield self._render.engine.identity()

    def batch(self, samples: Sequence[Sample], epoch: int) -> Iterator[Any]:
        """The samples' `Pairs`."""
        yield self._render(samples, epoch)

    def each(self, samples: Sequence[Sample], epoch: int) -> Iterator[None]:
        """Render one sample after another, and yield after each that did not crash."""
        for sample in samples:
            self._render([sample], epoch)
            yield None


def portable(samples: Sequence[Sample]) -> list[Sample]:
    """Samples whose bytes can be sent to another process."""
    return [replace(sample, encoded=bytes(sample.encoded), target=bytes(sample.target)) for sample in samples]


def find_crashers(samples: Sequence[Sample], recipe: Recipe, epoch: int, center: bool) -> dict[int, str]:
    """Find the samples that crash, by decoding each as `Renderer` would, in a child process.

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
    start = kills = 0
    views = with_views(recipe.tasks, recipe.image.size)
    child = ChildProcess(ChildRenderer, recipe.model_copy(update={"tasks": views}), 1, center)
    try:
        while start < len(samples):
            survived = 0
            try:
                for _ in child.call("each", portable(samples[start:]), epoch):
                    survived += 1
                break
            except Died as death:
                if survived:  # another sample is the current one
                    start, kills = start + survived, 0
                if start == len(samples):  # after the last of them
                    break
                if death.from_outside and kills < MOST_KILLS_FROM_OUTSIDE:
                    kills += 1
                else:
                    killers[start] = death.reason
                    start, kills = start + 1, 0
    finally:
        child.end()
    return killers
