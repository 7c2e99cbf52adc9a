"""Where a run's workers and actors write how far they are, and the command that started it reads it: a tiny Ray actor."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from pipeline.storage import scrubbed

_EVERY_SECONDS = 0.5
_LONG, _REST = 1.0, 10.0  # seconds after which a failure was a long one, and for how many times as long none is tried
_LONGEST = 300  # characters of another library's words

Record = dict[str, Any]
"""One log line: `stage`, `step`, `steps`, `epoch`, `lr`, `samples_per_second`, `wait_share`, `wait_cause`, `quarantined`, and
`tasks`, with `loss`, `metric` and `trivial` of each and whatever else its objective measures."""

Event = dict[str, Any]
"""What befell a run: `what` in words, `step`, and `workers`, how many train from then on."""

log = logging.getLogger(__name__)


class RunLog:
    """What a run has written and nobody has read, what befell it and found out, and why it stopped if it stopped on purpose."""

    def __init__(self) -> None:
        self._log: list[Record] = []
        self._step: int | None = None  # of the last line
        self._events: list[Event] = []
        self._workers, self._lost, self._actors = 0, "", 0
        self._doing: dict[str, tuple[str, int, float]] = {}
        self._refusal: Exception | None = None
        self._answer: dict[str, Any] = {}

    def log(self, record: Record) -> None:
        """Add a line; a run that restarted from a checkpoint writes its later lines again, and the old ones go."""
        while self._log and self._log[-1]["step"] >= record["step"]:
            self._log.pop()
        self._log.append(record)
        self._step = record["step"]

    def begin(self, step: int, workers: int, actors: int, whence: str = "") -> None:
        """Training begins, or goes on, at a step, with so many workers and so many data actors to come.

        Args:
            step: how many steps are done.
            workers: how many train.
            actors: how many data actors will come.
            whence: words for what it goes on from, where there is a checkpoint.
        """
        goes_on = f"training goes on from step {step}{whence}"
        if self._workers:
            why = self._lost or f"the cluster changed: there is room for {workers} workers, not {self._workers}"
            what = f"{why}; {goes_on} with {workers} worker{'s' * (workers > 1)}"
            self._events.append({"what": what, "step": step, "workers": workers})
        elif step:
            self._events.append({"what": goes_on, "step": step, "workers": workers})
        self._workers, self._lost, self._actors, self._doing = workers, "", actors, {}

    def note(self, what: str, step: int) -> None:
        """Something that whoever reads the results should know, in words."""
        self._events.append({"what": what, "step": step, "workers": self._workers})

    def lose(self, why: str) -> None:
        """A worker is lost."""
        self._lost = self._lost or why

    def doing(self, actor: str, stage: str, unit: int) -> None:
        """A data actor says what it is at, see `pipeline.streaming.plan.Tell`."""
        if stage == "start" and len(self._doing) >= self._actors and self._step is not None:
            event = f"a data actor died and {actor} took its place; no unit is lost"
            self._events.append({"what": event, "step": self._step, "workers": self._workers})
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
        """The lines after a step; those before it have been read, and go."""
        self._log = [line for line in self._log if line["step"] > step]
        return list(self._log)


class Steady:
    """A listener whose failures end neither the run nor what other listeners hear.

    The first failure is warned of, and `close` says how many lines were missed. A line at which it fails is not offered again.
    One that takes long to fail is left alone for ten times as long, so that it holds up the others for little of the time.

    Args:
        name: in warnings.
        take: the listener.
        clock: seconds.
    """

    def __init__(self, name: str, take: Callable[[Record], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._take, self._clock = name, take, clock
        self._lines = self._missed = 0
        self._rests_until = -float("inf")

    def __call__(self, record: Record) -> None:
        self._lines += 1
        started = self._clock()
        if started < self._rests_until:
            self._missed += 1
            return
        try:
            self._take(record)
        except Exception as error:  # noqa: BLE001 - whatever a tracker's library raises
            if not self._missed:
                log.warning("%s misses log lines, the run goes on without: %s", self._name, _in_a_line(error))
            self._missed += 1
            spent = self._clock() - started
            self._rests_until = self._clock() + _REST * spent if spent > _LONG else -float("inf")

    def close(self) -> None:
        """Say how many lines it has missed, if any."""
        if self._missed:
            log.warning("%s has missed %d of %d log lines", self._name, self._missed, self._lines)


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {scrubbed(' '.join(str(error).split()))}"[:_LONGEST]


def open_run_log() -> Any:
    """Start a board that lives as long as its handle; it takes no CPU, and lives where the command runs: other nodes may go."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(RunLog).options(scheduling_strategy=here).remote()


@contextmanager
def watched(board: Any, listeners: list[Callable[[Record], None]]) -> Iterator[None]:
    """While the block runs, and once more after it, hand each new line of the board to the listeners, and log what befell it.

    A listener that fails misses the line and is given the next one, see `Steady`.
    """
    import ray

    over = threading.Event()
    last, seen = -1, 0
    steady = [one if isinstance(one, Steady) else Steady("a listener of the log", one) for one in listeners]

    def pass_on() -> None:
        nonlocal last, seen
        for event in ray.get(board.events.remote(seen)):
            seen += 1
            log.warning("%s", event["what"])
        for record in ray.get(board.since.remote(last)):
            last = record["step"]
            for listener in steady:
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
    watching.result()  # what no listener is to blame for is the caller's
    pass_on()
    for listener in steady:
        listener.close()
