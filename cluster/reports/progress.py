"""Shows the progress of long steps on stderr: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from cluster.console import PlainConsole
from cluster.reports.formatting import amount, duration, metric

if TYPE_CHECKING:
    from cluster.jobs.ray_jobs import ClusterJob
    from cluster.jobs.run_state import RunState
    from pipeline.materialize.run import Progress as RenderProgress

LINE_SECONDS = 60.0
"""Seconds between the plain lines that replace a bar where there is no terminal."""

_PACE_COUNTS, _PACE_SECONDS = 12, 1.0
"""Rates are those of the newest counts, so many, which are at least so far apart."""

_SOME = 0.05
"""The share of waiting from which its cause is named."""

_STEP = re.compile(r"([\d,]+) of ([\d,]+)")

Clock = Callable[[], float]


@dataclass
class Pace:
    """Estimates rate and time left of a count that grows, by its newest values; if it falls, the estimate starts again."""

    clock: Clock = time.monotonic
    _seen: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_PACE_COUNTS))
    _last: int = 0

    def at(self, done: int, total: int) -> tuple[float | None, float | None]:
        """Items a second over the newest counts, and seconds until `total`; None while they are unknown."""
        now = self.clock()
        if done < self._last:
            self._seen.clear()
        self._last = done
        if not self._seen or now - self._seen[-1][0] >= _PACE_SECONDS:
            self._seen.append((now, done))
        since, base = self._seen[0]
        if done <= base or now <= since:
            return None, None
        rate = (done - base) / (now - since)
        return rate, max(0, total - done) / rate


class Display(Protocol):
    """Shows one step of work."""

    def show(self, title: str, done: int, total: int, words: str, detail: Any = None) -> None:
        """Bring the display up to date.

        Args:
            title: what is being done.
            done: how much of it.
            total: how much there is to do.
            words: further text for the line.
            detail: values of each task, for training: name -> (loss, metric, trivial metric), all as words.
        """


class Lines:
    """Plain lines: the first, one a minute, and the last of each title."""

    def __init__(self, write: Callable[[str], None], clock: Clock = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._title, self._written = "", 0.0

    def show(self, title: str, done: int, total: int, words: str, detail: Any = None) -> None:
        now = self._clock()
        if title == self._title and done < total and now - self._written < LINE_SECONDS:
            return
        self._title, self._written = title, now
        tasks = [f"{name} loss {loss}, {value}" for name, (loss, value, _) in (detail or {}).items()]
        self._write("; ".join([f"{title}: {words}" if words else title, *tasks]))


class NewestShown:
    """A display that keeps the newest of what it is to show, and the time at which that was written."""

    def __init__(self) -> None:
        self.what: tuple[Any, ...] = ()
        self.time = 0.0

    def show(self, *what: Any) -> None:
        self.what = what

    def clock(self) -> float:
        return self.time


class Bar:
    """A bar, and for training a table of the tasks below it."""

    def __init__(self, console: Console, waiting: str = "") -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(32),
            TextColumn("{task.fields[words]}", markup=False),
            TimeElapsedColumn(),
        )
        self._detail: Any = None
        self._task = self._progress.add_task(waiting, total=None, words="") if waiting else None
        self.live = Live(console=console, get_renderable=self._render, refresh_per_second=8)

    def show(self, title: str, done: int, total: int, words: str, detail: Any = None) -> None:
        if self._task is None:
            self._task = self._progress.add_task(title)
        self._progress.update(self._task, description=title, completed=done, total=total, words=words)
        self._detail = detail

    def _render(self) -> Group:
        return Group(self._progress, *([_tasks_table(self._detail)] if self._detail else []))


@contextmanager
def counted(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of a step that counts; nothing if it never does.

    Args:
        title: what is being done.
        unit: what is counted, in the singular; `B` stands for bytes.

    Yields:
        To be called with (done, total).
    """
    pace = Pace()
    with _display() as display:

        def tick(done: int, total: int) -> None:
            rate, left = pace.at(done, total)
            words = [f"{amount(done, unit) if unit == 'B' else format(done, ',')} of {amount(total, unit)}"]
            words += [f"{amount(rate, unit)}/s"] if rate else []
            words += [f"{duration(left)} left"] if left else []
            display.show(title, done, total, ", ".join(words))

        yield tick


@contextmanager
def named_parts(title: str) -> Iterator[Callable[[str], None]]:
    """Show a step by its parts; yields a function to call with the name of each part as it begins."""
    with _display(title) as display:
        display.show(title, 0, 1, "")
        yield lambda part: display.show(f"{title}: {part}", 0, 1, "")


@dataclass
class TrainingProgress:
    """Listens to a run's log lines and shows them.

    Args:
        stage: name of the command.
        phases: a title for each part of the run, by the `stage` of its log lines; each part counts its own steps.
        display: where to show it.
        metrics: name of each task's metric; `accuracy` where it is not here.
    """

    stage: str
    phases: Mapping[str, str]
    display: Display
    metrics: dict[str, str] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)
    _phase: str = ""

    def take(self, record: dict[str, Any]) -> None:
        """Show a line, see `trainers.running.run_log.Record`."""
        step, steps = record["step"], record["steps"]
        phase = self.phases.get(record["stage"], "")
        if phase != self._phase:
            self._phase, self.pace = phase, Pace(self.pace.clock)
        _, left = self.pace.at(step, steps)
        words = [
            f"step {step} of {steps}",
            *([f"round {record['round']} of {record['rounds']}"] if "round" in record else []),
            f"{record['samples_per_second']:,.0f} img/s",
            f"waiting for data {record['wait_share']:.0%}"
            + (f" ({record['wait_cause']})" if record["wait_share"] > _SOME else ""),
            f"{record['quarantined']} quarantined",
            *([f"{duration(left)} left"] if left else []),
        ]
        detail = {
            name: (
                f"{task['loss']:.3f}",
                *(metric(self.metrics.get(name, "accuracy"), task[key]) for key in ("metric", "trivial")),
            )
            for name, task in record["tasks"].items()
        }
        self.display.show(" ".join(filter(None, (self.stage, phase))), step, steps, ", ".join(words), detail)


@contextmanager
def training(stage: str, phases: Mapping[str, str], first: str = "starting workers") -> Iterator[TrainingProgress]:
    """Show the progress of a run; `TrainingProgress.take` is a listener for its log lines, and `first` is shown until the first
    one."""
    with _display(f"{stage}: {first}") as display:
        if isinstance(display, Lines):
            display.show(f"{stage}: {first}", 0, 1, "")
        yield TrainingProgress(stage, phases, display)


def watch_run(states: Iterable[RunState], phases: Mapping[str, str]) -> None:
    """Show a run as its own command does, until it ends.

    Args:
        states: what it is doing, again and again.
        phases: as of `TrainingProgress`.
    """
    newest, seen = NewestShown(), 0
    with _display() as display:
        shown: TrainingProgress | None = None
        for state in states:
            if shown is None:
                display.show(f"{state.command}: {state.status}", 0, 1, "")
                shown = TrainingProgress(state.command, phases, newest, pace=Pace(newest.clock))
            for line in state.lines[seen:]:
                newest.time = line["time"]
                shown.take(line)
            if len(state.lines) > seen:
                display.show(*newest.what)
            seen = len(state.lines)


def watch_job(states: Iterable[tuple[ClusterJob, str]]) -> ClusterJob:
    """Show a job of a cluster by the lines of progress that it prints, until it ends; returns it as it ended."""
    with _display() as display:
        before = ""
        for job, words in states:
            if (said := f"{job.id} {job.status}: {words}") != before:
                step = _STEP.search(words)
                done, total = (int(step[1].replace(",", "")), int(step[2].replace(",", ""))) if step else (1, 1)
                display.show(f"{job.id} {job.status}", done, max(total, done), words)
                before = said
    return job


@contextmanager
def rendering(doing: str) -> Iterator[Callable[[RenderProgress], None]]:
    """Show the progress of a render, or of another job; yields a function to call after each shard."""
    with _display() as display:
        yield _job_progress(doing, display)


@contextmanager
def rounds_progress() -> Iterator[
    tuple[TrainingProgress, Callable[[str], AbstractContextManager[Callable[[RenderProgress], None]]]]
]:
    """Show rounds of jobs and trainings in one display.

    Yields:
        What listens to the trainings' log lines; and a function that is called with the title of a job, and returns a context of
        what is to be called after each shard.
    """
    with _display("rounds: starting") as display:
        yield TrainingProgress("rounds", {}, display), lambda title: nullcontext(_job_progress(title, display))


def _job_progress(doing: str, display: Display) -> Callable[[RenderProgress], None]:
    pace = Pace()

    def tick(at: RenderProgress) -> None:
        rate, left = pace.at(at.samples_done, at.samples)
        words = [
            f"{at.shards_done:,} of {amount(at.shards, 'shard')}",
            f"{at.samples_done:,} of {amount(at.samples, 'sample')}",
            *([f"{rate:,.0f} img/s"] if rate else []),
            *([f"{duration(left)} left"] if left else []),
            f"{at.quarantined:,} quarantined",
            *([f"{amount(at.failed, 'shard')} failed"] if at.failed else []),
        ]
        display.show(doing, at.samples_done, at.samples, ", ".join(words))

    return tick


@contextmanager
def _display(waiting: str = "") -> Iterator[Display]:
    console = PlainConsole(stderr=True)
    if not console.is_terminal:
        yield Lines(lambda text: console.print(text, soft_wrap=True, highlight=False))
        return
    bar = Bar(console, waiting)
    with bar.live:
        yield bar


def _tasks_table(detail: dict[str, tuple[str, str, str]]) -> Table:
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for heading, justify in (("task", "left"), ("loss", "right"), ("metric", "right"), ("trivial answer", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for name, values in detail.items():
        table.add_row(name, *values)
    return table
