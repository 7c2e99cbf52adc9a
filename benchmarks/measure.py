"""Measures a contender: its batches over a window of time, and the processor time of all its processes.

`python -m benchmarks.measure` is the process in which contenders live: a line of JSON in for each measurement, a line out.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import psutil

from benchmarks.check import check
from benchmarks.work import Batch, Job


@dataclass
class Measured:
    """The measurements of a window of time.

    Args:
        images: photos that arrived in the window; a pass a task counts a photo once for all its passes.
        seconds: length of the window.
        cpu: processor seconds of this process and all its children in the window.
        first: seconds from the request to the first batch.
        own: memory that belongs to this process alone, bytes.
        others: the same for its children, summed; memory that is shared is not counted.
        parts: images a second in thirds of the window, to show that it was steady.
    """

    images: float
    seconds: float
    cpu: float
    first: float
    own: int
    others: int
    parts: list[float]


def window(batches: Iterator[Batch], warm: float, seconds: float) -> Measured:
    """Measure endless batches.

    Args:
        batches: the batches.
        warm: seconds after the first batch that do not count, in which queues that filled at the start run empty.
        seconds: the least length of the window, which begins and ends with the arrival of a batch.
    """
    asked = time.perf_counter()
    next(batches)
    first = time.perf_counter()
    while time.perf_counter() - first < warm:
        next(batches)
    processes = family()
    cpu, begun = cpu_seconds(processes), time.perf_counter()
    arrivals: list[tuple[float, int]] = []
    while not arrivals or arrivals[-1][0] < seconds:
        rows = len(next(iter(next(batches, _END).values())))
        if not rows:
            break
        arrivals.append((time.perf_counter() - begun, rows))
    spent = cpu_seconds(processes) - cpu
    own, others = _memory(processes[:1]), _memory(processes[1:])
    length = arrivals[-1][0]
    thirds = [sum(rows for at, rows in arrivals if k * length / 3 < at <= (k + 1) * length / 3) for k in range(3)]
    parts = [3 * rows / length for rows in thirds]
    return Measured(sum(rows for _, rows in arrivals), length, spent, first - asked, own, others, parts)


_END: Batch = {"": np.empty(0)}


def measure(contender: str, job: Job, warm: float, seconds: float) -> Measured:
    """Measure a contender; one that makes a pass a task is measured in each pass, and the passes are added up."""
    module = importlib.import_module(f"benchmarks.contenders.{contender}")
    passes = [replace(job, tasks=(task,)) for task in job.tasks] if module.PASSES and len(job.tasks) > 1 else [job]
    found = []
    for one in passes:
        with closing(module.batches(one)) as batches:
            found.append(window(batches, warm, seconds if len(passes) == 1 else seconds / 2))
        gc.collect()
    if len(found) == 1:
        return found[0]
    each = sum(m.seconds / m.images for m in found)
    return Measured(
        images=1,
        seconds=each,
        cpu=sum(m.cpu / m.images for m in found),
        first=found[0].first,
        own=max(m.own for m in found),
        others=max(m.others for m in found),
        parts=[1 / sum(1 / max(m.parts[k], 1e-9) for m in found) for k in range(3)],
    )


def family() -> list[psutil.Process]:
    """This process and all below it."""
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Processor time that the processes have used; that of processes that ended is lost."""
    total = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:2])
    return total


def _memory(processes: list[psutil.Process]) -> int:
    total = 0
    for process in processes:
        try:
            total += process.memory_full_info().uss
        except psutil.NoSuchProcess:
            continue
    return total


def main() -> None:
    """Measure what each line of the input asks for."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        asked = json.loads(line)
        asked["job"]["options"] = tuple((name, value) for name, value in asked["job"]["options"])
        job = Job(**{name: tuple(value) if isinstance(value, list) else value for name, value in asked["job"].items()})
        answer: dict[str, Any]
        try:
            if asked.get("references"):
                answer = {"wrong": check(asked["contender"], job, asked["references"])}
            else:
                answer = asdict(measure(asked["contender"], job, asked["warm"], asked["seconds"]))
        except Exception as error:  # noqa: BLE001  reported to the parent, which goes on with the others
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
