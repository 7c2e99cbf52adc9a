"""Accuracies: the standard error of one, and that of naming the most frequent class."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def score(accuracy: float, tested: int) -> dict[str, Any]:
    """An accuracy with its standard error, that of a share among `tested` images drawn by chance: sqrt(p (1 - p) / n)."""
    return {"accuracy": accuracy, "standard_error": math.sqrt(accuracy * (1 - accuracy) / tested)}


def most_frequent(labels: np.ndarray) -> float:
    """The accuracy of always naming the most frequent class, of how many images each label has, int64 (classes,)."""
    return int(labels.max()) / int(labels.sum())
