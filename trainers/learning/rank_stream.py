"""A rank's stream of batches out of Ray Data, how long each stage of it took, and what holds it up."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from pipeline.errors import RunError
from pipeline.recipe.execution import Placement
from pipeline.rendering.renderer import Columns
from pipeline.rendering.units import STAGES, UnitSource
from pipeline.streaming.batches import ahead
from pipeline.streaming.plan import steps, units

FEED_STAGES = (*STAGES, "transfer", "wait")
_BATCHES_AHEAD = 2
_BUSY = 0.5
_MOST_PATIENCE = 3
"""For how many times `failures.stall_seconds` a batch is waited for while its stages go on."""


class Stalled(RunError):
    """A stage of the data plane has given nothing for longer than `failures.stall_seconds`."""


def cause(seconds: Mapping[str, float], elapsed: float, place: Placement, world: int) -> str:
    """The stage that training waits for: the longest of those whose processes have hardly a moment to spare.

    Args:
        seconds: of each stage, over all ranks, in that time.
        elapsed: the time, in seconds.
        place: where stages run, and how many actors there are.
        world: number of ranks.

    Returns:
        A name of `STAGES` (`tasks` is the training workers' own); or `transfer`, if no process is busy for half of its time
        and so the bytes' way must be it.
    """
    first = STAGES.index("check" if place.render == "trainer" else "tasks")  # of the stages that training workers do themselves
    pools = [(STAGES[:first], place.actors), (STAGES[first:], world)]
    loads = [(sum(seconds[stage] for stage in stages) / (size * max(elapsed, 1e-9)), stages) for stages, size in pools]
    load, stages = max(loads)
    return max(stages, key=lambda stage: seconds[stage]) if load >= _BUSY else "transfer"


def grace(patience: float, waited: float, still: float) -> float:
    """For how many seconds more to wait for a batch whose time is up: a slow machine is none that stands still.

    Args:
        patience: seconds that a stage may stand still.
        waited: seconds since the batch was asked for, `patience` or more.
        still: seconds for which the stage that has stood still longest has done so.

    Returns:
        0 where a stage stands still, or goes on and on without a batch.
    """
    return max(patience - still, 0.0) if waited < _MOST_PATIENCE * patience else 0.0


@dataclass
class RankStream:
    """Batches of one rank, in the order of the schedule; every rank of the run makes its own at the same time.

    Args:
        source: what to stream; its `step` is where to begin.
        rank: this rank.
        world: number of ranks.
        board: where data actors say what they are at; without one a stall names no actor.
    """

    source: UnitSource
    rank: int
    world: int
    board: Any = None
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(FEED_STAGES, 0.0))
    first_batch: float | None = None
    """Seconds from the start of the stream to its first batch."""
    samples: int = 0
    _marks: dict[str, float] = field(default_factory=lambda: dict.fromkeys(FEED_STAGES, 0.0))

    def since_last(self) -> dict[str, float]:
        """Seconds of each stage since this was last asked."""
        before, self._marks = self._marks, dict(self.seconds)
        return {stage: seconds - before[stage] for stage, seconds in self.seconds.items()}

    def __iter__(self) -> Iterator[tuple[int, Columns]]:
        import ray.train.torch
        import torch
        from ray.train.collective import broadcast_from_rank_zero

        started = time.perf_counter()
        schedule = self.source.schedule.shared_by(self.world)
        source = replace(self.source, schedule=schedule)
        tell = None if self.board is None else partial(_tell, self.board)
        # One dataset for all ranks, made by rank 0: Ray Train's own `datasets=` forces equal splits, which drop rows.
        # An actor of Ray's carries it out, for one rank too: here Ray would print an error that is none (its issue 53727).
        splits = units(source, tell, crops=True).streaming_split(self.world, equal=False) if self.rank == 0 else None
        data = broadcast_from_rank_zero(splits)[self.rank]
        device = ray.train.torch.get_device()
        gpu = device.index if device.type == "cuda" else None
        timed = self._timed(steps(source, data, self.rank, self.world, gpu, tell, torch.get_num_threads()))
        made = ahead(timed, _BATCHES_AHEAD, partial(self._late, source))
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
        """Pass batches on, adding up how long each took to fetch and put together (in the background), its tasks aside."""
        tasks = STAGES.index("tasks")
        while True:
            asked = time.perf_counter()
            item = next(made, None)
            if item is None:
                return
            self.seconds["transfer"] += time.perf_counter() - asked - float(item[1]["seconds"][:, tasks].sum())
            yield item

    def _late(self, source: UnitSource, waited: float) -> float:
        """For how many seconds more to wait for a batch.

        Raises:
            Stalled: in vain, with what is known of it.
        """
        patience, place = source.recipe.failures.stall_seconds, source.recipe.placement
        if waited < patience:
            return patience - waited
        import ray

        words = f"no batch has come to rank {self.rank} for {waited:.0f} s (failures.stall_seconds: {patience:g}): "
        if self.board is None:
            raise Stalled(words + "reading, rendering or transfer stands still")
        busy, come = ray.get([self.board.busy.remote(), self.board.actors.remote()])
        if busy:
            actor, stage, unit, seconds = busy[0]
            if more := grace(patience, waited, seconds):
                return more
            raise Stalled(f"{words}{stage} has stood still for {seconds:.0f} s on {actor}{_whereabouts(source, unit)}")
        if come == 0:
            raise Stalled(
                f"{words}start: none of the {place.actors} data actors has come; are {place.actors} x {place.cpus:g} CPUs "
                "and one more free beside the workers?"
            )
        raise Stalled(
            f"{words}transfer: the data actors have nothing to do, their units do not arrive; is the object store full?"
        )


def _tell(board: Any, actor: str, stage: str, unit: int) -> None:
    board.doing.remote(actor, stage, unit)


def _whereabouts(source: UnitSource, unit: int) -> str:
    """The shards that a unit is read from."""
    if unit < 0:
        return ""
    shards = source.schedule.unit(unit, source.step)[1].shards
    urls = [source.corpus.urls[shard] for shard in np.unique(shards[shards >= 0])]
    return f", at {', '.join(urls[:3])}{f' and {len(urls) - 3} more shards' if len(urls) > 3 else ''}"
