"""The curves of a run in bounded memory, and a summary of each task from the last log lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

MOST_POINTS = 1000
MOST_RECENT = 20
LEAST_RECENT = 5
"""The fewest lines from which a standard error is computed."""

LEAST_STEPS = 100
"""The fewest updates after which a task is judged."""

STANDARD_ERRORS = 3.0

Line = dict[str, Any]
"""A log line: `step`; `tasks`, each one's means over the steps since the line before; `counts`, its number of samples."""


class History:
    """Keeps the log lines of a run: a curve of at most `MOST_POINTS` points, and the last `MOST_RECENT` lines unchanged.

    When there would be more points, each two neighbours are merged into their mean, so that a curve's points are evenly spaced
    however long the run is.

    Args:
        state: the result of `state`, or the list of all lines that older checkpoints hold.
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
        """For each task the entries that `trainers.learning.loop.summary` returns."""
        names = self._recent[-1]["tasks"] if self._recent else {}
        return {name: {**self._curve(name), **self._last(name), **self._margin(name)} for name in names}

    def _curve(self, name: str) -> dict[str, list[float]]:
        points = [(point["step"], point["tasks"][name]) for point in self._points]
        return {
            "step": [step for step, _ in points],
            "loss": [task["loss"] for _, task in points],
            "metrics": [task["metric"] for _, task in points],
            "trivials": [task["trivial"] for _, task in points],
        }

    def _last(self, name: str) -> dict[str, Any]:
        task = dict(self._recent[-1]["tasks"][name])
        del task["loss"]
        return {"metric": task.pop("metric"), "trivial": task.pop("trivial"), "also": task}

    def _margin(self, name: str) -> dict[str, float | None]:
        """How much the metric exceeds that of the trivial answer over the last quarter of the lines, with its standard error."""
        wanted = min(MOST_RECENT, max(LEAST_RECENT, self._lines // 4))
        tasks = [line["tasks"][name] for line in self._recent[-wanted:] if line["counts"][name]]
        apart = [task["metric"] - task["trivial"] for task in tasks]
        if len(apart) < LEAST_RECENT:
            return {"margin": None, "margin_error": None}
        return {"margin": mean(apart), "margin_error": stdev(apart) / math.sqrt(len(apart))}


def learnt(task: Mapping[str, Any], higher_is_better: bool, steps: int) -> bool | None:
    """Whether a task's metric is better than the trivial answer's by more than noise: three standard errors.

    Args:
        task: its entry in `History.tasks`.
        higher_is_better: whether a higher metric is better.
        steps: updates of the run.

    Returns:
        None where the run is too short to tell.
    """
    if steps < LEAST_STEPS or task["margin"] is None:
        return None
    margin = task["margin"] if higher_is_better else -task["margin"]
    return bool(margin > STANDARD_ERRORS * task["margin_error"])


def _merged(first: Line, second: Line) -> Line:
    """Merge two neighbouring points into one: the means over the samples of both."""
    counts = {name: first["counts"][name] + count for name, count in second["counts"].items()}
    shares = {name: second["counts"][name] / count if count else 0.5 for name, count in counts.items()}
    tasks = {
        name: {key: (1 - shares[name]) * first["tasks"][name][key] + shares[name] * value for key, value in task.items()}
        for name, task in second["tasks"].items()
    }
    return {"step": second["step"], "tasks": tasks, "counts": counts, "lines": first["lines"] + second["lines"]}
