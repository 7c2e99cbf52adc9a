"""Computes blocks of fixed size, each on one thread, so that results depend neither on threads nor on how rows are cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.materialize.threads import mapped_on
from pipeline.processes.cpu import cpu_model

T = TypeVar("T")
R = TypeVar("R")


BLOCK = 1024
"""Rows of one matrix product, always so many, filled up with zeros."""
_COLUMNS = 32
"""Columns of a product, at least: with few, what the library computes for a row depends on the row's place in its block."""


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
        return mapped_on(self._pool, compute, blocks, self._threads + 1)


def processor_kind(device: torch.device) -> str:
    """The model of the processor that computes on a device; others may round differently."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return cpu_model()


def blocks_of(x: Tensor, rows: int = BLOCK) -> Iterator[Tensor]:
    """The rows, some at a time; the last block is filled up with zeros."""
    for block in x.split(rows):
        yield block if len(block) == rows else F.pad(block, (0, 0, 0, rows - len(block)))


def columns_of(rows: Tensor) -> Tensor:
    """The rows of a matrix as columns, with columns of zeros after them where there are fewer than `_COLUMNS`."""
    return F.pad(rows, (0, 0, 0, max(0, _COLUMNS - len(rows)))).T
