"""Label kinds: what shape a pseudo-label has, which decides how a trainer learns from it.

A task declares one of these; `trainers.objectives` has a default objective (head, loss, metric) for each. A new task with
an existing kind therefore needs no trainer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Classes:
    """One of `count` classes: column `<task>.label`, int64 of shape (n,), 0 <= label < count."""

    count: int


@dataclass(frozen=True)
class Pixels:
    """An image of the batch is the label; it is named, not copied.

    Args:
        target: the batch column (or task column, after the task's name) that holds it: uint8 (n, h, w, 3).
        channels: `rgb` asks for the colours themselves, `chroma` for the two colour-difference channels only, where the input
            already shows the brightness.
        masked: the column `<task>.mask`, uint8 (n, h, w) of 0 and 1, says where the loss counts.
    """

    target: str = "image"
    channels: Literal["rgb", "chroma"] = "rgb"
    masked: bool = False


LabelKind = Classes | Pixels
