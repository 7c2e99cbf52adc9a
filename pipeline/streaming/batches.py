"""From units back to steps: one rank's share of each global batch, in order, from the units it receives."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from pipeline.ordering.order import Schedule
from pipeline.rendering.renderer import Columns

T = TypeVar("T")


def batches(schedule: Schedule, step: int, rank: int, world: int, units: Iterable[Columns]) -> Iterator[tuple[int, Columns]]:
    """Assemble a rank's batches.

    Args:
        schedule: the order of the run.
        step: where to begin.
        rank: this rank; it owns the groups rank, rank + world, rank + 2 world, ...
        world: number of ranks; divides the groups, see `Schedule.shared_by`.
        units: the columns of this rank's units, in order; each carries its number in the column `unit`.

    Yields:
        The global step and the columns of this rank's samples of it: those of its lanes, batch / world rows or nearly so many.

    Raises:
        RuntimeError: if a unit is missing, too short, or not the one that is due.
    """
    geometry = schedule.geometry
    per_step = geometry.unit_rows
    arriving = iter(units)
    for window, steps in enumerate(schedule.windows(step)):
        parts = []
        for group in range(rank, geometry.groups, world):
            unit, due = next(arriving, None), window * geometry.groups + group
            if unit is None or len(unit["unit"]) != len(steps) * per_step or unit["unit"][0] != due:
                found = "nothing" if unit is None else f"unit {unit['unit'][0]} with {len(unit['unit'])} rows"
                raise RuntimeError(
                    f"order broken on rank {rank}: unit {due} with {len(steps) * per_step} rows was due, {found} came"
                )
            parts.append((unit, geometry.rows_of(group)))
        for i, now in enumerate(steps):
            start = i * per_step
            yield now, {name: _joined([part[name][start : start + rows] for part, rows in parts]) for name in parts[0][0]}


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import torch

    return torch.cat(parts)


def ahead(items: Iterable[T], depth: int, late: Callable[[float], float] | None = None) -> Iterator[T]:
    """Run an iterator in a thread of its own, at most `depth` items ahead; its errors come out here.

    Args:
        items: the iterator.
        depth: how many items may wait to be taken.
        late: given for how many seconds an item has been waited for, says how many more it may take, or raises; without it there
            is no end.
    """
    room: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(entry: tuple[T | None, BaseException | None, bool]) -> None:
        while not stopped.is_set():
            try:
                return room.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def run() -> None:
        try:
            for item in items:
                put((item, None, False))
                if stopped.is_set():
                    return
            put((None, None, True))
        except BaseException as error:  # noqa: BLE001  handed over whole, to be raised where the items are wanted
            put((None, error, True))

    threading.Thread(target=run, name="ahead", daemon=True).start()
    try:
        while True:
            item, error, last = _next(room, late)
            if error is not None:
                raise error
            if last:
                return
            yield item  # type: ignore[misc]
    finally:
        stopped.set()


def _next(room: queue.Queue[T], late: Callable[[float], float] | None) -> T:
    asked = time.monotonic()
    while True:
        try:
            return room.get(timeout=None if late is None else late(time.monotonic() - asked))
        except queue.Empty:
            continue
