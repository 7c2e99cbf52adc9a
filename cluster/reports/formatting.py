"""Formats numbers for people."""

from __future__ import annotations

from collections.abc import Sequence


def amount(value: float, unit: str) -> str:
    """A count with its unit, a noun in the singular; bytes, unit `B`, in the decimal multiple that fits."""
    if unit != "B":
        number = f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
        return f"{number} {unit}" if number == "1" else f"{number} {unit}s"
    power = 0
    while value >= 1000 and power < 4:
        value, power = value / 1000, power + 1
    return f"{value:.0f} {' kMGT'[power].strip()}B" if not power or value >= 100 else f"{value:.1f} {' kMGT'[power]}B"


def duration(seconds: float) -> str:
    """Seconds as 0:05, 12:30 or 3:07:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def curve(values: Sequence[float]) -> str:
    """Values as a line of bars, the least one the lowest."""
    low, high = min(values), max(values)
    return "".join(_BARS[round((value - low) / ((high - low) or 1) * (len(_BARS) - 1))] for value in values)


_BARS = "▁▂▃▄▅▆▇█"
PER_CENT = " %"
_SHARES = ("accuracy", "cells", "whole_orders", "nearest", "assignment_entropy", "real_accuracy", "made_accuracy")


def unit_of(name: str) -> tuple[int, str]:
    """The factor by which a metric is shown, and the unit that its name implies: per cent, decibels, degrees, or none."""
    return (100, PER_CENT) if name in _SHARES else (1, {"psnr": " dB", "degrees": "°"}.get(name, ""))


def metric(name: str, value: float) -> str:
    """A metric's value in its unit."""
    factor, unit = unit_of(name)
    return f"{factor * value:.1f}{unit}" if unit else f"{value:.3g}"


def difference(name: str, value: float, error: float) -> str:
    """How far a metric is above or below another value of it, with the standard error, in words."""
    factor, unit = unit_of(name)
    unit = " points" if unit == PER_CENT else unit
    return f"{factor * abs(value):.2f} ± {factor * error:.2f}{unit} {'below' if value < 0 else 'above'}"
