"""The run log: a small Ray actor to which workers and data actors report, and which the command that started the run reads."""

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
_LONG, _REST = 1.0, 10.0  # a failure that took more seconds is long, and is followed by a pause so many times as long
_LONGEST = 300  # characters of another library's message

Record = dict[str, Any]
"""One log line: `stage`, `step`, `steps`, `epoch`, `lr`, `samples_per_second`, `wait_share`, `wait_cause`, `quarantined`, and
`tasks`, with `loss`, `metric` and `trivial` of each and whatever else its objective measures."""

Event = dict[str, Any]
"""Something that happened to a run: `what` in words, `step`, and `workers`, how many train from then on."""

log = logging.getLogger(__name__)


class RunLog:
    """Holds a run's unread log lines, its events, its result, and the error that ended it on purpose, if one did."""

    def __init__(self) -> None:
        self._log: list[Record] = []
        self._step: int | None = None  # of the last line
        self._events: list[Event] = []
        self._workers, self._lost, self._actors = 0, "", 0
        self._doing: dict[str, tuple[str, int, float]] = {}
        self._error: Exception | None = None
        self._result: dict[str, Any] = {}

    def log(self, record: Record) -> None:
        """Add a line; it replaces those of the same and later steps, which a run writes again after resuming from a
        checkpoint."""
        while self._log and self._log[-1]["step"] >= record["step"]:
            self._log.pop()
        self._log.append(record)
        self._step = record["step"]

    def begin(self, step: int, workers: int, actors: int, origin: str = "") -> None:
        """Record that training starts, or resumes, at a step.

        Args:
            step: how many steps are done.
            workers: how many train.
            actors: how many data actors will start.
            origin: words for the checkpoint that it resumes from, if there is one.
        """
        goes_on = f"training goes on from step {step}{origin}"
        if self._workers:
            why = self._lost or f"the cluster changed: there is room for {workers} workers, not {self._workers}"
            what = f"{why}; {goes_on} with {workers} worker{'s' * (workers > 1)}"
            self._events.append({"what": what, "step": step, "workers": workers})
        elif step:
            self._events.append({"what": goes_on, "step": step, "workers": workers})
        self._workers, self._lost, self._actors, self._doing = workers, "", actors, {}

    def note(self, what: str, step: int) -> None:
        """Record something that readers of the results should know, in words."""
        self._events.append({"what": what, "step": step, "workers": self._workers})

    def worker_lost(self, why: str) -> None:
        """Record that a worker was lost; the first reason is kept until training resumes."""
        self._lost = self._lost or why

    def report(self, actor: str, stage: str, unit: int) -> None:
        """Record what a data actor does, see `pipeline.streaming.plan.units`."""
        if stage == "start" and len(self._doing) >= self._actors and self._step is not None:
            event = f"a data actor died and {actor} took its place; no unit is lost"
            self._events.append({"what": event, "step": self._step, "workers": self._workers})
        for other in [name for name, at in self._doing.items() if at[1] == unit >= 0 and name != actor]:
            self._doing[other] = ("idle", -1, time.monotonic())  # it died on this unit, or has finished it
        self._doing[actor] = (stage, unit, time.monotonic())

    def active(self) -> list[tuple[str, str, int, float]]:
        """Data actors that are not idle: actor, stage, unit and seconds since it began, the longest first."""
        now = time.monotonic()
        found = [(actor, stage, unit, now - since) for actor, (stage, unit, since) in self._doing.items() if stage != "idle"]
        return sorted(found, key=lambda entry: -entry[3])

    def actors(self) -> int:
        """How many data actors have started."""
        return len(self._doing)

    def events(self, seen: int = 0) -> list[Event]:
        """The run's events, without the first `seen`."""
        return self._events[seen:]

    def set_result(self, result: dict[str, Any]) -> None:
        """Set the result of the run."""
        self._result = result

    def result(self) -> dict[str, Any]:
        """The result, as given to `set_result`."""
        return self._result

    def set_error(self, error: Exception) -> None:
        """Record the error that ends the run here, so that it is not taken for a lost worker and restarted."""
        self._error = error

    def error(self) -> Exception | None:
        """The error given to `set_error`, if any."""
        return self._error

    def since(self, step: int) -> list[Record]:
        """The lines after a step; earlier ones have been read, and are dropped."""
        self._log = [line for line in self._log if line["step"] > step]
        return list(self._log)


class TolerantListener:
    """Calls a listener whose failures must affect neither the run nor other listeners.

    The first failure is logged as a warning, and `close` logs how many lines were missed. A line at which it fails is not
    repeated. After a failure that took long it is not called for ten times as long, so that it seldom holds up the others.

    Args:
        name: its name in warnings.
        take: the listener.
        clock: returns the time in seconds.
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
                log.warning("%s misses log lines, the run goes on without them: %s", self._name, _one_line(error))
            self._missed += 1
            spent = self._clock() - started
            self._rests_until = self._clock() + _REST * spent if spent > _LONG else -float("inf")

    def close(self) -> None:
        """Log how many lines were missed, if any."""
        if self._missed:
            log.warning("%s has missed %d of %d log lines", self._name, self._missed, self._lines)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {scrubbed(' '.join(str(error).split()))}"[:_LONGEST]


def open_run_log() -> Any:
    """Start a run log that lives as long as its handle; it takes no CPU, and runs on the command's node, as others may be
    removed."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(RunLog).options(scheduling_strategy=here).remote()


@contextmanager
def watched(run_log: Any, listeners: list[Callable[[Record], None]]) -> Iterator[None]:
    """Pass each new line of the run log to the listeners, and log its events, while the block runs and once after it.

    A listener that fails misses the line and gets the next one, see `TolerantListener`.
    """
    import ray

    over = threading.Event()
    last, seen = -1, 0
    tolerant = [one if isinstance(one, TolerantListener) else TolerantListener("a listener of the log", one) for one in listeners]

    def pass_on() -> None:
        nonlocal last, seen
        for event in ray.get(run_log.events.remote(seen)):
            seen += 1
            log.warning("%s", event["what"])
        for record in ray.get(run_log.since.remote(last)):
            last = record["step"]
            for listener in tolerant:
                listener(record)

    def watch() -> None:
        while not over.wait(_EVERY_SECONDS):
            pass_on()

    with ThreadPoolExecutor(1, thread_name_prefix="run-log") as pool:
        watching = pool.submit(watch)
        try:
            yield
        finally:
            over.set()
    watching.result()  # raises errors that are not a listener's
    pass_on()
    for listener in tolerant:
        listener.close()
