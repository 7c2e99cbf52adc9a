"""A map on threads with a bounded number of pending items, however long its input is."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_WAITING = 8  # results for each thread


def mapped(work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """The results of `work` on each item, in the order of the items; its errors are raised here.

    Args:
        work: called in any of the threads.
        items: taken a bounded number ahead of the results.
        threads: how many.
    """
    with ThreadPoolExecutor(threads) as pool:
        try:
            yield from mapped_on(pool, work, items, threads * _WAITING)
        finally:
            pool.shutdown(cancel_futures=True)


def mapped_on(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """`mapped` on threads that are there: at most `ahead` items are taken before the first of their results is given out."""
    todo = iter(items)
    running: deque[Future[R]] = deque(pool.submit(work, item) for item in islice(todo, ahead))
    while running:
        yield running.popleft().result()
        running.extend(pool.submit(work, item) for item in islice(todo, 1))
