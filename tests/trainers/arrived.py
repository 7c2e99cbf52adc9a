"""Units as Ray Data hands them to a rank, without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.rendering.units import UnitSource
from pipeline.streaming.plan import _ReadUnits, _RenderUnits


class Arrived:
    """What the actors of a source's placement send, encoded or rendered, all of it by one."""

    def __init__(self, source: UnitSource) -> None:
        self._source = source

    def iter_batches(self, **given: Any) -> Iterator[Any]:
        place, tasks = self._source.recipe.placement, len(self._source.recipe.tasks)
        actor = _ReadUnits(self._source, None) if place.render == "trainer" else _RenderUnits(self._source, None, tasks, 1)
        yield from actor({"id": np.arange(self._source.schedule.units(0))})
