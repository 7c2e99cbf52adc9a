"""What a row of downstream results was measured for: an accuracy, unless the row names another measure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MEASURES = {"accuracy": "accuracy", "mean_iou": "mean IoU", "ap": "COCO AP"}
"""The measures of rows by name, in words; all are shares."""


def measured_value(row: Mapping[str, Any]) -> float:
    """The number that a row was measured for, in 0..1."""
    return float(row[row.get("measure", "accuracy")])


def measure_words(row: Mapping[str, Any]) -> str:
    """What that number is, in words."""
    return MEASURES[row.get("measure") or "accuracy"]
