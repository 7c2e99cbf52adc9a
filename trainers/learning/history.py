"""The curves of a run in bounded memory, and what its last log lines say of each task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

MOST_POINTS = 1000
MOST_RECENT = 20
LEAST_RECENT = 5
"""Of so many lines at least a standard error is made."""

LEAST_STEPS = 100
"""Fewer updates than these say nothing of a task."""

STANDARD_ERRORS = 3.0

Line = dict[str, Any]
"""`step`; `tasks`, the means of each over the steps since the line before; `counts`, of how many samples of each task."""


class History:
    """The log lines of a run: as a curve of at most `MOST_POINTS` points, and the last of them as they were.

    Where there would be more points, neighbours become one, the means over both: a curve is even, however long the run.

    Args:
        state: what `state` gave; or the list of all lines that checkpoints held before.
    """

    def __init__(self, state: Mapping[str, Any] | list[Line] | None = None) -> None:
        self._points: list[Line] = []
        self._recent: list[Line] = []
        self._lines = 0
        if isinstance(state, list):
            for line in state:
                self.add(line)
        elif state is not None:
            self._points, self._recent, self._lines = list(state["points"]), list(state["recent"]), state["lines"]

    def add(self, line: Line) -> None:
        """Add a line."""
        counts = line.get("counts") or dict.fromkeys(line["tasks"], 1.0)
        point = {"step": line["step"], "tasks": line["tasks"], "counts": counts, "lines": 1}
        self._lines += 1
        self._recent = [*self._recent, point][-MOST_RECENT:]
        if self._points and self._points[-1]["lines"] < self._points[0]["lines"]:
            self._points[-1] = _merged(self._points[-1], point)
        else:
            self._points.append(point)
        if len(self._points) > MOST_POINTS:
            pairs = [self._points[i : i + 2] for i in range(0, len(self._points), 2)]
            self._points = [_merged(*pair) if len(pair) == 2 else pair[0] for pair in pairs]

    @property
    def recent(self) -> Sequence[Line]:
        """The last lines, at most `MOST_RECENT`."""
        return self._recent

    def state(self) -> dict[str, Any]:
        """All of it, as plain data for a checkpoint."""
        return {"points": self._points, "recent": self._recent, "lines": self._lines}

    def tasks(self) -> dict[str, dict[str, Any]]:
        """Of each task what `trainers.learning.loop.summary` says of it."""
        names = self._recent[-1]["tasks"] if self._recent else {}
        return {name: {**self._curve(name), **self._last(name), **self._margin(name)} for name in names}

    def _curve(self, name: str) -> dict[str, list[float]]:
        points = [(point["step"], point["tasks"][name]) for point in self._points]
        return {
            "step": [step for step, _ in points],
            "loss": [task["loss"] for _, task in points],
            "metrics": [task["metric"] for _, task in points],
        }

    def _last(self, name: str) -> dict[str, Any]:
        task = dict(self._recent[-1]["tasks"][name])
        del task["loss"]
        return {"metric": task.pop("metric"), "trivial": task.pop("trivial"), "also": task}

    def _margin(self, name: str) -> dict[str, float | None]:
        """By how much the metric exceeds the trivial answer's over the last quarter of the lines, and its standard error."""
        wanted = min(MOST_RECENT, max(LEAST_RECENT, self._lines // 4))
        tasks = [line["tasks"][name] for line in self._recent[-wanted:] if line["counts"][name]]
        apart = [task["metric"] - task["trivial"] for task in tasks]
        if len(apart) < LEAST_RECENT:
            return {"margin": None, "margin_error": None}
        return {"margin": mean(apart), "margin_error": stdev(apart) / math.sqrt(len(apart))}


def learnt(task: Mapping[str, Any], higher_is_better: bool, steps: int) -> bool | None:
    """Whether a task's metric is better than the trivial answer's by more than noise: three standard errors.

    Args:
        task: what `History.tasks` says of it.
        higher_is_better: of its metric.
        steps: updates of the run.

    Returns:
        None where the run is too short to tell.
    """
    if steps < LEAST_STEPS or task["margin"] is None:
        return None
    margin = task["margin"] if higher_is_better else -task["margin"]
    return bool(margin > STANDARD_ERRORS * task["margin_error"])


def _merged(first: Line, second: Line) -> Line:
    """One point of two neighbours: the means over the samples of both."""
    counts = {name: first["counts"][name] + count for name, count in second["counts"].items()}
    shares = {name: second["counts"][name] / count if count else 0.5 for name, count in counts.items()}
    tasks = {
        name: {key: (1 - shares[name]) * first["tasks"][name][key] + shares[name] * value for key, value in task.items()}
        for name, task in second["tasks"].items()
    }
    return {"step": second["step"], "tasks": tasks, "counts": counts, "lines": first["lines"] + second["lines"]}
