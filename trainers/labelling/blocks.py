"""Computes blocks of fixed size, each on one thread, so that results depend neither on threads nor on how rows are cut."""

from __future__ import annotations

import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class BlockPool:
    """Threads, each of which computes with one thread of torch.

    A library that shares one matrix product among threads may sum in another order for another number of them; here each product
    has one thread, and several are computed at the same time.

    Args:
        threads: how many.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "block", torch.set_num_threads, (1,))

    def map(self, compute: Callable[[T], R], blocks: Iterable[T]) -> Iterator[R]:
        """The results of `compute` on each block, in order; blocks are taken at most `threads` ahead of the results."""
        waiting: deque[Future[R]] = deque()
        for block in blocks:
            waiting.append(self._pool.submit(compute, block))
            if len(waiting) > self._threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def processor_kind(device: torch.device) -> str:
    """The model of the processor that computes on a device; others may round differently."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()
