"""Detects the collapse of a view task: the network gives all photos the same features, however low its loss is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import RunError

LINES = 3
"""Number of log lines that must show a collapse."""

WARM_UP = 0.1
"""Share of the run, from its start, in which a collapse is not looked for."""

LEAST_SAMPLES = 256
"""Number of samples that must show it: over fewer, a young network and chance look alike."""

ERRORS = 3
"""`nearest` counts as no better than chance if it is at most so many standard errors above it."""

LEAST_STD = 0.05
"""`feature_std` below which all samples count as having the same representation."""


class Collapsed(RunError):
    """A task's representation has collapsed; a restart from the same checkpoint would end the same way."""


def collapsed(lines: Sequence[Mapping[str, Any]], steps: int) -> str | None:
    """Describe the collapse of a task and what to try; None if no task has collapsed, or it is too early to say.

    A task has collapsed if `nearest` is no better than chance, or `feature_std` is nearly 0, over the last log lines: at least
    `LINES` lines and `LEAST_SAMPLES` samples, all after the first `WARM_UP` of the run.

    Args:
        lines: the last log lines, see `trainers.learning.history.Line`.
        steps: number of steps of the run.
    """
    grown = [line for line in lines if line["step"] > WARM_UP * steps]
    for name, task in grown[-1]["tasks"].items() if grown else ():
        if "feature_std" not in task or not (last := _last(grown, name)):
            continue
        samples = sum(line["counts"][name] for line in last)
        nearest, chance, std = (_mean(last, name, key) for key in ("metric", "trivial", "feature_std"))
        found = f"{name} has collapsed: the other view of a photo is the nearest for {nearest:.2%}, by chance {chance:.2%}"
        if std < LEAST_STD:
            return (
                f"{found}, and the representation varies by {std:.3f} where 1 is healthy; lower training.optimizer.lr, lengthen "
                "its warmup, set training.batch_norm: global, or give the objective a predictor or a higher momentum"
            )
        if nearest <= chance + ERRORS * math.sqrt(chance * (1 - chance) / samples):
            return (
                f"{found}; if many photos of the corpus are copies of each other, remove them; else let views overlap more "
                f"(tasks.{name}.scale) and change less (jitter, blur), or lower training.optimizer.lr"
            )
    return None


def _last(lines: Sequence[Mapping[str, Any]], name: str) -> Sequence[Mapping[str, Any]]:
    """The last lines that hold enough samples of a task; none if there are too few."""
    for n in range(LINES, len(lines) + 1):
        if sum(line["counts"][name] for line in lines[-n:]) >= LEAST_SAMPLES:
            return lines[-n:]
    return ()


def _mean(lines: Sequence[Mapping[str, Any]], name: str, key: str) -> float:
    """The mean over the samples of the lines."""
    counts = [line["counts"][name] for line in lines]
    return float(sum(line["tasks"][name][key] * count for line, count in zip(lines, counts)) / sum(counts))
