"""Units as Ray Data hands them to a rank, without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.rendering.units import UnitSource
from pipeline.streaming.plan import _ReadUnits, _RenderUnits


class Arrived:
    """What the actors of the sources' placement send, encoded or rendered, as if by a single actor."""

    def __init__(self, *sources: UnitSource) -> None:
        self._sources = sources

    def iter_batches(self, **given: Any) -> Iterator[Any]:
        recipe = self._sources[0].recipe
        encoded = recipe.placement.render == "trainer"
        actor = _ReadUnits(self._sources, None) if encoded else _RenderUnits(self._sources, None, len(recipe.tasks), 1)
        yield from actor({"id": np.arange(sum(source.schedule.units(0) for source in self._sources))})
