"""Detects the collapse of a view task: the network gives all photos the same features, however low its loss is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import RunError

LINES = 3
"""Number of log lines that must show a collapse."""

WARM_UP = 0.1
"""Share of the run, from its start, in which a collapse is not looked for."""

ABOVE_CHANCE = 0.1
"""`nearest` counts as no better than chance below chance plus this share of the rest, or below twice chance if that is less."""

LEAST_STD = 0.05
"""`feature_std` below which all samples count as having the same representation."""


class Collapsed(RunError):
    """A task's representation has collapsed; a restart from the same checkpoint would end the same way."""


def collapsed(lines: Sequence[Mapping[str, Any]], steps: int) -> str | None:
    """Describe the collapse of a task and what to try; None if no task has collapsed, or it is too early to say.

    A task has collapsed if over the last `LINES` lines, all after the first `WARM_UP` of the run, `nearest` is no better than
    chance, or `feature_std` is nearly 0.

    Args:
        lines: the last log lines, see `trainers.learning.history.Line`.
        steps: number of steps of the run.
    """
    last = [line for line in lines if line["step"] > WARM_UP * steps][-LINES:]
    if len(last) < LINES:
        return None
    for name, task in last[-1]["tasks"].items():
        if "feature_std" not in task or not all(line["counts"][name] for line in last):
            continue
        nearest, chance, std = (_mean(last, name, key) for key in ("metric", "trivial", "feature_std"))
        found = f"{name} has collapsed: the other view of a photo is the nearest for {nearest:.2%}, by chance {chance:.2%}"
        if std < LEAST_STD:
            return (
                f"{found}, and the representation varies by {std:.3f} where 1 is healthy; lower training.optimizer.lr, lengthen "
                "its warmup, set training.batch_norm: global, or give the objective a predictor or a higher momentum"
            )
        if nearest <= min(2 * chance, chance + ABOVE_CHANCE * (1 - chance)):
            return (
                f"{found}; if many photos of the corpus are copies of each other, remove them; else let views overlap more "
                f"(tasks.{name}.scale) and change less (jitter, blur), or lower training.optimizer.lr"
            )
    return None


def _mean(lines: Sequence[Mapping[str, Any]], name: str, key: str) -> float:
    return float(sum(line["tasks"][name][key] for line in lines) / len(lines))
