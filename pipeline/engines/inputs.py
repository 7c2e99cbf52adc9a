"""Renders the inputs of all tasks from crops on the CPU, a few crops at a time, on several threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipeline.engines.cpu_ops import CpuOps
from pipeline.engines.vocabulary import Drawn, Renderable

CACHED_BYTES = 2**20
"""Bytes of crops that a thread renders at a time, so that they stay in a core's second-level cache."""


class Threads:
    """Distributes the rows of a batch, or parts of it, over threads."""

    def __init__(self, threads: int) -> None:
        self.count = threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def __call__(self, rows: int, work: Callable[[int, int], None]) -> None:
        """Call `work(row, thread)` for each row; each thread has a contiguous part of the rows."""
        if self._pool is None:
            for row in range(rows):
                work(row, 0)
            return

        def part(thread: int) -> None:
            for row in range(rows * thread // self.count, rows * (thread + 1) // self.count):
                work(row, thread)

        list(self._pool.map(part, range(self.count)))


def inputs_of(
    tasks: Mapping[str, Renderable], image: np.ndarray, drawn: Mapping[str, Drawn], threads: Threads
) -> dict[str, np.ndarray]:
    """Render the inputs of all tasks from crops: all tasks of a few crops at a time, which stay in the processor's cache.

    Args:
        tasks: the tasks by name.
        image: the crops, uint8 (n, s, s, 3), or those of each sample's frames below each other, (n, frames * s, s, 3).
        drawn: the parameters that each task drew, by its name.
        threads: the threads to use.

    Returns:
        A column `<task>.input`, uint8, for each task that does not cut its own windows.
    """
    n, size = len(image), image.shape[2]
    ops, tasks = CpuOps(size), {name: task for name, task in tasks.items() if not task.view_columns(size)}
    columns = {name: np.empty((n, *task.input_shape(size)), np.uint8) for name, task in tasks.items()}
    each = max(1, min(CACHED_BYTES // math.prod(image.shape[1:]), -(-n // threads.count)))

    def make(part: int, _: int) -> None:
        rows = slice(part * each, (part + 1) * each)
        for name, task in tasks.items():
            of_task = {key: value[rows] for key, value in drawn[name].items()}
            columns[name][rows] = task.render(ops, image[rows, : task.frames * size], of_task)

    threads(-(-n // each), make)
    return {f"{name}.input": column for name, column in columns.items()}
