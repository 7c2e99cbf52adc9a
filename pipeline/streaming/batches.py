"""Assembles the batches of one rank: its share of each global batch, in order, from the units that it receives."""

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
        step: the first step.
        rank: this rank; it owns the groups rank, rank + world, rank + 2 world, ...
        world: number of ranks; divides the groups, see `Schedule.shared_by`.
        units: the columns of this rank's units, in order; each carries its number in the column `unit`.

    Yields:
        The global step and the columns of this rank's samples of it: those of its lanes, about batch / world rows.

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


def ahead(items: Iterable[T], depth: int, time_left: Callable[[float], float] | None = None) -> Iterator[T]:
    """Run an iterator in a thread of its own, at most `depth` items ahead; its errors are raised here.

    Args:
        items: the iterator.
        depth: how many items may wait to be taken.
        time_left: takes the seconds that the next item has been waited for, and returns for how many more to wait, or raises;
            None waits without a limit.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(entry: tuple[T | None, BaseException | None, bool]) -> None:
        while not stopped.is_set():
            try:
                return ready.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def run() -> None:
        try:
            for item in items:
                put((item, None, False))
                if stopped.is_set():
                    return
            put((None, None, True))
        except BaseException as error:  # noqa: BLE001  passed on, to be raised where the items are taken
            put((None, error, True))

    threading.Thread(target=run, name="ahead", daemon=True).start()
    try:
        while True:
            item, error, last = _next(ready, time_left)
            if error is not None:
                raise error
            if last:
                return
            yield item  # type: ignore[misc]
    finally:
        stopped.set()


def _next(ready: queue.Queue[T], time_left: Callable[[float], float] | None) -> T:
    asked = time.monotonic()
    while True:
        try:
            return ready.get(timeout=None if time_left is None else time_left(time.monotonic() - asked))
        except queue.Empty:
            continue
