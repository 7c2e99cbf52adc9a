"""A rank's stream of batches out of Ray Data, and how long each stage of it took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.batches import ahead, batches
from pipeline.render import Columns
from pipeline.stream import rendered, units
from pipeline.units import STAGES, Source

_UNITS_AHEAD, _BATCHES_AHEAD = 2, 2


@dataclass
class Feed:
    """Batches of one rank, in the order of the schedule; every rank of the run makes its own at the same time.

    Args:
        source: what to stream; its `step` is where to begin.
        rank: this rank.
        world: number of ranks.
    """

    source: Source
    rank: int
    world: int
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*STAGES, "assemble", "wait"), 0.0))
    first_batch: float | None = None
    """Seconds from the start of the stream to its first batch."""
    samples: int = 0
    _marks: dict[str, float] = field(default_factory=dict)

    def since_last(self, stage: str) -> float:
        """Seconds of a stage since this was last asked."""
        before, self._marks[stage] = self._marks.get(stage, 0.0), self.seconds[stage]
        return self.seconds[stage] - before

    def __iter__(self) -> Iterator[tuple[int, Columns]]:
        import ray.train.torch
        from ray.train.collective import broadcast_from_rank_zero

        started = time.perf_counter()
        # One dataset for all ranks, made by rank 0: Ray Train's own `datasets=` forces equal splits, which drop rows.
        splits = units(self.source).streaming_split(self.world, equal=False) if self.rank == 0 else None
        split = broadcast_from_rank_zero(splits)[self.rank]
        if self.source.recipe.placement.render == "workers":
            arriving = split.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=_UNITS_AHEAD)
        else:
            tables = split.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=_UNITS_AHEAD)
            gpu = ray.train.torch.get_device().index or 0
            arriving = ahead(rendered(self.source, tables, self.source.recipe.placement.threads, gpu), _UNITS_AHEAD)
        steps = ahead(
            self._timed(batches(self.source.schedule, self.source.step, self.rank, self.world, arriving)), _BATCHES_AHEAD
        )
        while True:
            asked = time.perf_counter()
            item = next(steps, None)
            self.seconds["wait"] += time.perf_counter() - asked
            if item is None:
                return
            if self.first_batch is None:
                self.first_batch = time.perf_counter() - started
            for stage, seconds in zip(STAGES, item[1]["seconds"].sum(axis=0)):
                self.seconds[stage] += float(seconds)
            self.samples += len(item[1]["id"])
            yield item

    def _timed(self, made: Iterator[tuple[int, Columns]]) -> Iterator[tuple[int, Columns]]:
        """Pass batches on, adding up how long each took to fetch and put together (in the background)."""
        while True:
            asked = time.perf_counter()
            item = next(made, None)
            if item is None:
                return
            self.seconds["assemble"] += time.perf_counter() - asked
            yield item
