"""Mixes corpora by weight, a share of the samples: how many an epoch takes of each corpus, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Portion:
    """One corpus of a mixture.

    Args:
        name: its name in the recipe.
        weight: its share of the samples, relative to the other weights.
        shards: number of its shards; the mixture's shards are those of all portions, one portion after the other.
    """

    name: str
    weight: float
    shards: int


def apportion(total: int, weights: Sequence[float]) -> np.ndarray:
    """Divide `total` samples by weight: int64 (corpora,), each within one of its exact share (method of largest remainders)."""
    exact = np.asarray(weights, np.float64) / np.sum(weights) * total
    counts = np.floor(exact).astype(np.int64)
    missing = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return counts


def deal(counts: np.ndarray, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spread samples of several corpora evenly over slots, each corpus in its own order.

    The first corpus takes every slot at which floor(slot * its share) grows, the second does the same with those left, and so
    on; so each slot can be computed by itself, and the slots of a corpus hold its samples in order.

    Args:
        counts: int64 (corpora,): samples of each corpus; they fill `counts.sum()` slots, fewer than 3 * 10^9.
        slots: int64 (n,), each from 0 to counts.sum() - 1.

    Returns:
        For each slot the corpus, and the number of the sample among the corpus's own; int64 (n,) both.
    """
    corpus, index, left = np.full(len(slots), len(counts) - 1), np.asarray(slots, np.int64).copy(), int(counts.sum())
    free = np.ones(len(slots), bool)
    for i, count in enumerate(counts[:-1].tolist()):
        before = index * count // max(left, 1)
        takes = free & ((index + 1) * count // max(left, 1) > before)
        corpus[takes] = i
        index = np.where(takes, before, np.where(free, index - before, index))
        free &= ~takes
        left -= count
    return corpus, index
