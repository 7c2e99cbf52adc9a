"""Detects a discriminator that is always right, or always wrong: the network learns nothing from it any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LINES = 3
"""Number of log lines that must show it."""

LEAST_SAMPLES = 256
"""Number of samples that must show it."""

SURE = 0.99
"""Accuracy above which a discriminator counts as always right; below 1 minus this it is always wrong."""


def one_sided(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """Describe a discriminator whose accuracy is about 0 or 100 %, and what to try; None if there is none.

    It is so over the last log lines: at least `LINES` lines and `LEAST_SAMPLES` samples.

    Args:
        lines: the last log lines, see `trainers.learning.history.Line`.
    """
    for name, task in lines[-1]["tasks"].items() if lines else ():
        if "real_accuracy" not in task:
            continue
        last = lines[-LINES:]
        counts = [line["counts"][name] for line in last]
        if len(last) < LINES or sum(counts) < LEAST_SAMPLES:
            continue
        real, made = ([line["tasks"][name][key] for line in last] for key in ("real_accuracy", "made_accuracy"))
        found = f"the discriminator of {name} is right about {real[-1]:.1%} of photos and {made[-1]:.1%} of painted images"
        where = f"tasks.{name}.objective"
        if min(*real, *made) > SURE:
            return (
                f"{found}: it tells them all apart, and the network learns little from it; lower {where}.lr, or raise "
                f"{where}.start so that it begins later; with kind: least_squares or wasserstein its judgement stays of use"
            )
        if max(real) < 1 - SURE or max(made) < 1 - SURE:
            return f"{found}: it takes all for the same and learns nothing; raise {where}.lr, or lower {where}.weight"
    return None
