"""The standard error of an accuracy."""

from __future__ import annotations

import math
from typing import Any


def score(accuracy: float, tested: int) -> dict[str, Any]:
    """An accuracy with its standard error, that of a share among `tested` images drawn by chance: sqrt(p (1 - p) / n)."""
    return {"accuracy": accuracy, "standard_error": math.sqrt(accuracy * (1 - accuracy) / tested)}
