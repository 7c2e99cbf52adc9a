"""Where a run's rank 0 writes how far it is, and the command that started the run reads it: a tiny Ray actor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

_EVERY_SECONDS = 0.5

Record = dict[str, Any]
"""One log line: `step`, `steps`, `epoch`, `lr`, `samples_per_second`, `wait_share`, `quarantined`, and `tasks`, with loss,
metric and trivial metric of each."""


class Board:
    """The log of a run so far, what it found out, and why it stopped if it stopped on purpose."""

    def __init__(self) -> None:
        self._log: list[Record] = []
        self._refusal: Exception | None = None
        self._answer: dict[str, Any] = {}

    def log(self, record: Record) -> None:
        """Add a line; a run that restarted from a checkpoint writes its later lines again, and the old ones go."""
        self._log = [line for line in self._log if line["step"] < record["step"]] + [record]

    def conclude(self, answer: dict[str, Any]) -> None:
        """Say what the run found out."""
        self._answer = answer

    def answer(self) -> dict[str, Any]:
        """What was given to `conclude`."""
        return self._answer

    def refuse(self, error: Exception) -> None:
        """Say why the run ends here, so that it is not taken for a lost worker and restarted."""
        self._refusal = error

    def refusal(self) -> Exception | None:
        """What was given to `refuse`, if anything."""
        return self._refusal

    def since(self, step: int) -> list[Record]:
        """The lines after a step."""
        return [line for line in self._log if line["step"] > step]


def open_board() -> Any:
    """Start a board that lives as long as its handle; it takes no CPU."""
    import ray

    return ray.remote(num_cpus=0)(Board).remote()


@contextmanager
def watched(board: Any, listeners: list[Callable[[Record], None]]) -> Iterator[None]:
    """While the block runs, and once more after it, hand each new line of the board to the listeners."""
    import ray

    over = threading.Event()
    last = -1

    def pass_on() -> None:
        nonlocal last
        for record in ray.get(board.since.remote(last)):
            last = record["step"]
            for listener in listeners:
                listener(record)

    def watch() -> None:
        while not over.wait(_EVERY_SECONDS):
            pass_on()

    with ThreadPoolExecutor(1, thread_name_prefix="board") as pool:
        watching = pool.submit(watch)
        try:
            yield
        finally:
            over.set()
    watching.result()  # a listener's error is the caller's
    pass_on()
