"""Where a run's workers and actors write how far they are, and the command that started it reads it: a tiny Ray actor."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

_EVERY_SECONDS = 0.5

Record = dict[str, Any]
"""One log line: `step`, `steps`, `epoch`, `lr`, `samples_per_second`, `wait_share`, `wait_cause`, `quarantined`, and `tasks`,
with `loss`, `metric` and `trivial` of each and whatever else its objective measures."""

Event = dict[str, Any]
"""What befell a run: `what` in words, `step`, and `workers`, how many train from then on."""

log = logging.getLogger(__name__)


class Board:
    """The log of a run so far, what befell it and what it found out, and why it stopped if it stopped on purpose."""

    def __init__(self) -> None:
        self._log: list[Record] = []
        self._events: list[Event] = []
        self._workers, self._lost, self._actors = 0, "", 0
        self._doing: dict[str, tuple[str, int, float]] = {}
        self._refusal: Exception | None = None
        self._answer: dict[str, Any] = {}

    def log(self, record: Record) -> None:
        """Add a line; a run that restarted from a checkpoint writes its later lines again, and the old ones go."""
        self._log = [line for line in self._log if line["step"] < record["step"]] + [record]

    def begin(self, step: int, workers: int, actors: int) -> None:
        """Training begins, or goes on, at a step, with so many workers and so many data actors to come."""
        if self._workers:
            was, now = self._workers, f"training goes on from step {step} with {workers} worker{'s' * (workers > 1)}"
            why = self._lost or f"the cluster changed: there is room for {workers} workers, not {was}"
            self._events.append({"what": f"{why}; {now}", "step": step, "workers": workers})
        self._workers, self._lost, self._actors, self._doing = workers, "", actors, {}

    def note(self, what: str, step: int) -> None:
        """Something that whoever reads the results should know, in words."""
        self._events.append({"what": what, "step": step, "workers": self._workers})

    def lose(self, why: str) -> None:
        """A worker is lost."""
        self._lost = self._lost or why

    def doing(self, actor: str, stage: str, unit: int) -> None:
        """A data actor says what it is at, see `pipeline.stream.Tell`."""
        if stage == "start" and len(self._doing) >= self._actors and self._log:
            event = f"a data actor died and {actor} took its place; no unit is lost"
            self._events.append({"what": event, "step": self._log[-1]["step"], "workers": self._workers})
        for other in [name for name, at in self._doing.items() if at[1] == unit >= 0 and name != actor]:
            self._doing[other] = ("idle", -1, time.monotonic())  # it died over this unit, or has handed it on
        self._doing[actor] = (stage, unit, time.monotonic())

    def busy(self) -> list[tuple[str, str, int, float]]:
        """Data actors that are at something: actor, stage, unit and for how many seconds, the longest first."""
        now = time.monotonic()
        found = [(actor, stage, unit, now - since) for actor, (stage, unit, since) in self._doing.items() if stage != "idle"]
        return sorted(found, key=lambda entry: -entry[3])

    def actors(self) -> int:
        """How many data actors have come."""
        return len(self._doing)

    def events(self, seen: int = 0) -> list[Event]:
        """What befell the run, without the first `seen`."""
        return self._events[seen:]

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
    """Start a board that lives as long as its handle; it takes no CPU, and lives where the command runs: other nodes may go."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(Board).options(scheduling_strategy=here).remote()


@contextmanager
def watched(board: Any, listeners: list[Callable[[Record], None]]) -> Iterator[None]:
    """While the block runs, and once more after it, hand each new line of the board to the listeners, and log what befell it."""
    import ray

    over = threading.Event()
    last, seen = -1, 0

    def pass_on() -> None:
        nonlocal last, seen
        for event in ray.get(board.events.remote(seen)):
            seen += 1
            log.warning("%s", event["what"])
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
