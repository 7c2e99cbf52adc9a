"""A rank's stream of batches from Ray Data, the seconds that each stage took, and which stage holds it up."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from pipeline.errors import RunError
from pipeline.recipe.execution import Placement
from pipeline.rendering.renderer import Columns
from pipeline.rendering.units import STAGES, UnitSource
from pipeline.streaming.batches import ahead
from pipeline.streaming.plan import place_of, steps, units

FEED_STAGES = (*STAGES, "transfer", "wait")
_BATCHES_AHEAD = 2
_BUSY = 0.5
_MOST_PATIENCE = 3
"""A batch is waited for at most this many times `failures.stall_seconds`, as long as its stages make progress."""


class Stalled(RunError):
    """A stage of the data plane has produced nothing for longer than `failures.stall_seconds`."""


def cause(seconds: Mapping[str, float], elapsed: float, place: Placement, world: int) -> str:
    """Name the stage that training waits for: the longest stage of the busiest processes.

    Args:
        seconds: of each stage, over all ranks, in that time.
        elapsed: the time, in seconds.
        place: where stages run, and how many actors there are.
        world: number of ranks.

    Returns:
        A name of `STAGES` (`tasks` runs in the training workers); or `transfer`, if no process is busy for half of its time, so
        that sending the bytes must be the limit.
    """
    first = STAGES.index("check" if place.render == "trainer" else "tasks")  # the first that training workers do themselves
    pools = [(STAGES[:first], place.actors), (STAGES[first:], world)]
    loads = [(sum(seconds[stage] for stage in stages) / (size * max(elapsed, 1e-9)), stages) for stages, size in pools]
    load, stages = max(loads)
    return max(stages, key=lambda stage: seconds[stage]) if load >= _BUSY else "transfer"


def more_seconds(patience: float, waited: float, still: float) -> float:
    """How many more seconds to wait for a batch whose time is up: a slow stage still makes progress, a stalled one does not.

    Args:
        patience: seconds for which a stage may make no progress.
        waited: seconds since the batch was requested, `patience` or more.
        still: seconds since the last progress of the stage that has made none for longest.

    Returns:
        0 if a stage has stalled, or if stages make progress and no batch comes.
    """
    return max(patience - still, 0.0) if waited < _MOST_PATIENCE * patience else 0.0


@dataclass
class RankStream:
    """Iterates over the batches of one rank, in the order of the schedule; all ranks of a run do so at the same time.

    Args:
        sources: what to stream, one source after the other; the `step` of each is its first step.
        rank: this rank.
        world: number of ranks.
        run_log: where data actors report what they do; without one the error of a stall names no actor.
    """

    sources: Sequence[UnitSource]
    rank: int
    world: int
    run_log: Any = None
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(FEED_STAGES, 0.0))
    first_batch: float | None = None
    """Seconds from the start of the stream to its first batch."""
    samples: int = 0
    _marks: dict[str, float] = field(default_factory=lambda: dict.fromkeys(FEED_STAGES, 0.0))

    def since_last(self) -> dict[str, float]:
        """Seconds of each stage since the last call."""
        before, self._marks = self._marks, dict(self.seconds)
        return {stage: seconds - before[stage] for stage, seconds in self.seconds.items()}

    def __iter__(self) -> Iterator[tuple[int, Columns]]:
        import ray.train.torch
        import torch
        from ray.train.collective import broadcast_from_rank_zero

        started = time.perf_counter()
        sources = [replace(source, schedule=source.schedule.shared_by(self.world)) for source in self.sources]
        report = None if self.run_log is None else partial(_report, self.run_log)
        # One dataset for all ranks, made by rank 0: Ray Train's own `datasets=` forces equal splits, which drop rows.
        # A Ray actor executes it, for a single rank too: in this process Ray would print a false error (its issue 53727).
        splits = units(sources, report, crops=True).streaming_split(self.world, equal=False) if self.rank == 0 else None
        data = broadcast_from_rank_zero(splits)[self.rank]
        device = ray.train.torch.get_device()
        gpu = device.index if device.type == "cuda" else None
        timed = self._timed(steps(sources, data, self.rank, self.world, gpu, report, torch.get_num_threads()))
        made = ahead(timed, _BATCHES_AHEAD, partial(self._late, sources))
        while True:
            asked = time.perf_counter()
            item = next(made, None)
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
        """Yield batches, adding up the seconds that each took to fetch and assemble (in the background) without its tasks."""
        tasks = STAGES.index("tasks")
        while True:
            asked = time.perf_counter()
            item = next(made, None)
            if item is None:
                return
            self.seconds["transfer"] += time.perf_counter() - asked - float(item[1]["seconds"][:, tasks].sum())
            yield item

    def _late(self, sources: Sequence[UnitSource], waited: float) -> float:
        """How many more seconds to wait for a batch.

        Raises:
            Stalled: no more, with the stage and actor that hold it up, as far as they are known.
        """
        recipe = sources[0].recipe
        patience, place = recipe.failures.stall_seconds, recipe.placement
        if waited < patience:
            return patience - waited
        import ray

        words = f"no batch has come to rank {self.rank} for {waited:.0f} s (failures.stall_seconds: {patience:g}): "
        if self.run_log is None:
            raise Stalled(words + "reading, rendering or transfer stands still")
        active, started = ray.get([self.run_log.active.remote(), self.run_log.actors.remote()])
        if active:
            actor, stage, unit, seconds = active[0]
            if more := more_seconds(patience, waited, seconds):
                return more
            raise Stalled(f"{words}{stage} has stood still for {seconds:.0f} s on {actor}{_whereabouts(sources, unit)}")
        if started == 0:
            raise Stalled(
                f"{words}start: none of the {place.actors} data actors has started; are {place.actors} x {place.cpus:g} CPUs "
                "and one more free besides the training workers?"
            )
        raise Stalled(f"{words}transfer: the data actors are idle, and their units do not arrive; is the object store full?")


def _report(run_log: Any, actor: str, stage: str, unit: int) -> None:
    run_log.report.remote(actor, stage, unit)


def _whereabouts(sources: Sequence[UnitSource], unit: int) -> str:
    """Words that name the shards from which a unit is read."""
    if unit < 0:
        return ""
    which, number = place_of(sources, unit)
    source = sources[which]
    shards = source.schedule.unit(number, source.step)[1].shards
    urls = [source.corpus.urls[shard] for shard in np.unique(shards[shards >= 0])]
    return f", at {', '.join(urls[:3])}{f' and {len(urls) - 3} more shards' if len(urls) > 3 else ''}"
