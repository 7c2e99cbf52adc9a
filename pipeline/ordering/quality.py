"""Measures how well an order mixes, on its own batches, and compares it with a full shuffle of the same samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.ordering.order import Schedule

_STEPS = 64


@dataclass(frozen=True)
class Mixing:
    """How far samples move, and how often a batch holds two of the same shard.

    Args:
        displacement: mean distance between a sample's place in the corpus and its place in the epoch, as a share of the length;
        0 in the corpus's own order.
        same_shard: share of the pairs of samples in a batch that come from one shard.
    """

    displacement: float
    same_shard: float


def mixing(schedule: Schedule, epoch: int = 0) -> tuple[Mixing, Mixing]:
    """Measure an epoch's order, and work out what a full shuffle would be expected to reach.

    Args:
        schedule: the order; at most 64 of its batches are looked at, spread over the epoch.
        epoch: number of the epoch.

    Returns:
        The order's mixing, and a full shuffle's.
    """
    plan, counts = schedule.plan(epoch), schedule.counts
    starts, total = np.cumsum(counts) - counts, max(int(counts.sum()), 1)
    steps = np.unique(np.linspace(0, plan.steps - 1, min(plan.steps, _STEPS)).astype(np.int64))
    moved, by_chance, pairs, same = [], [], 0, 0
    for step in steps.tolist():
        rows = plan.batch(step)
        there = np.flatnonzero(rows.shards >= 0)
        place = (starts[rows.shards[there]] + rows.rows[there] + 0.5) / total
        moved.append(np.abs(place - (step * len(rows) + there + 0.5) / (plan.steps * len(rows))))
        by_chance.append(place**2 - place + 0.5)  # the mean distance of a fixed place from one anywhere
        each = np.bincount(rows.shards[there])
        pairs, same = pairs + len(there) * (len(there) - 1), same + int((each * (each - 1)).sum())
    share = _expected(schedule, plan.quotas)
    full = float((share**2).sum() - share.sum() / max(plan.samples, 1)) * plan.samples / max(plan.samples - 1, 1)
    return (
        Mixing(float(np.concatenate(moved).mean()), same / max(pairs, 1)),
        Mixing(float(np.concatenate(by_chance).mean()), max(full, 0.0)),
    )


def _expected(schedule: Schedule, quotas: np.ndarray) -> np.ndarray:
    """Share of the epoch's samples that comes from each shard: float64 (shards,)."""
    if not schedule.portions:
        return schedule.counts / schedule.counts.sum()
    own = np.split(schedule.counts, np.cumsum([portion.shards for portion in schedule.portions])[:-1])
    return np.concatenate([quota / quotas.sum() * counts / counts.sum() for quota, counts in zip(quotas, own)])
