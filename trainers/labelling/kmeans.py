"""K-means on vectors in memory, spherical or plain: greedy k-means++, then Lloyd's rounds with sums exact in any order."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.draws import Draws
from trainers.labelling.blocks import BlockPool

BLOCK = 1024
"""Rows of one matrix product, always so many, filled up with zeros."""

_START = 16, 8192
"""K-means++ chooses among so many points a centroid, and at least so many."""
_STARTS, _WARM_UP = 4, 5
"""Choices of first centroids, and rounds after which the best of them is taken: one alone may miss a cluster."""
_SPLIT = 1 / 1024
"""How far the two halves of a split cluster begin from its centroid, relative to it (as in faiss)."""
_BITS = 30
"""Sums count in units of 2**-30 of the largest value, so that 2**33 points fit in 64 bits."""
_ROUNDING = 4e-6
"""Squared distances below this share of the two squared lengths are rounding of float32, and taken for zero."""


@dataclass(frozen=True)
class Clustering:
    """Centroids, and how they came about.

    Args:
        centroids: float32 (k, d); fewer rows than were asked for if there are fewer distinct points.
        inertia: sum of the squared distances of all points to their centroids, at the start and after each round.
        split: how many empty clusters were given half of another.
    """

    centroids: np.ndarray
    inertia: list[float]
    split: int


def kmeans(
    x: np.ndarray, k: int, spherical: bool, rounds: int, seed: int, pool: BlockPool, before: np.ndarray | None = None
) -> Clustering:
    """Cluster points.

    The result is a function of the points in their order, `k`, `rounds` and `seed` alone. It ends early if no point changes its
    cluster. An empty cluster is given half of the largest one.

    Args:
        x: float32 (n, d), n at least 1.
        k: how many clusters.
        spherical: compare directions: points and centroids have length 1.
        rounds: of Lloyd's algorithm, at most.
        seed: for the choice of the first centroids.
        pool: threads to compute on.
        before: int (n,): a number below `k` that each point has from an earlier clustering, or -1. The first centroids are then
            the means of the points of equal numbers, so that clusters keep their numbers.
    """
    mean = None if spherical else x.mean(0, dtype=np.float64).astype(np.float32)
    points = _prepared(torch.from_numpy(x), mean)
    if before is not None and (before >= 0).any():
        first, split = _means_before(points, torch.from_numpy(before).long(), k, spherical)
        found = _lloyd(points, first, rounds, spherical, pool)
        return Clustering(_moved(found.centroids, mean), found.inertia, split + found.split)
    few = points[: max(_START[0] * k, _START[1])]
    starts = []
    for start in range(_STARTS):
        centroids = _first(few, points, k, seed, start, pool)
        starts.append(_lloyd(few, centroids, min(rounds, _WARM_UP), spherical, pool))
    best = min(starts, key=lambda one: one.inertia[-1])
    found = _lloyd(points, torch.from_numpy(best.centroids), rounds, spherical, pool)
    return Clustering(_moved(found.centroids, mean), found.inertia, best.split + found.split)


def _moved(centroids: np.ndarray, mean: np.ndarray | None) -> np.ndarray:
    return centroids if mean is None else centroids + mean


def _means_before(points: Tensor, before: Tensor, k: int, spherical: bool) -> tuple[Tensor, int]:
    """The means of the points of each of `k` numbers, a number that none has being given half of the largest; and how many these
    were."""
    known = before >= 0
    means, counts = _means(points[known], before[known], torch.zeros(k, points.shape[1]), _scale(points, spherical))
    means, split = _split_empty(means, counts)
    return F.normalize(means) if spherical else means, split


def _lloyd(points: Tensor, centroids: Tensor, rounds: int, spherical: bool, pool: BlockPool) -> Clustering:
    """Move each centroid to the mean of the points nearest to it, again and again, until no point changes its cluster."""
    scale = _scale(points, spherical)
    inertia, splits, before = [], 0, None
    for n in range(rounds + 1):
        labels, squared, _ = _nearest(points, centroids, pool)
        inertia.append(float(squared.double().sum()))
        if n == rounds or (before is not None and torch.equal(labels, before)):
            break
        before = labels
        centroids, counts = _means(points, labels, centroids, scale)
        centroids, more = _split_empty(centroids, counts)
        splits += more
        centroids = F.normalize(centroids) if spherical else centroids
    return Clustering(centroids.numpy(), inertia, splits)


def assign(x: np.ndarray, centroids: np.ndarray, spherical: bool, pool: BlockPool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nearest centroid of each point, of several as near the first; each point's result depends on no other point.

    Args:
        x: float32 (n, d).
        centroids: float32 (k, d).
        spherical: as of `kmeans`.
        pool: threads to compute on.

    Returns:
        int32 (n,): its number; float32 (n,): the distance to it, of directions 1 - cosine; float32 (n,): how much further the
        next centroid is, infinite where there is none.
    """
    middle = None if spherical else centroids.mean(0, dtype=np.float64).astype(np.float32)
    points, around = (_prepared(torch.from_numpy(part), middle) for part in (x, centroids))
    labels, nearest, second = _nearest(points, around, pool)
    near, next_one = (part / 2 if spherical else part.sqrt() for part in (nearest, second))
    return labels.int().numpy(), near.numpy(), (next_one - near).numpy()


def _prepared(x: Tensor, middle: np.ndarray | None) -> Tensor:
    """Points of length 1; or their differences from `middle`, near which float32 is finer."""
    return F.normalize(x) if middle is None else x - torch.from_numpy(middle)


def _scale(points: Tensor, spherical: bool) -> float:
    """In which parts of 1 sums count, see `_BITS`."""
    return float(2.0 ** (_BITS - max(0 if spherical else _exponent(points), -900)))


def _exponent(x: Tensor) -> int:
    """The least n for which no value exceeds 2**n."""
    most = float(x.abs().max())
    return math.ceil(math.log2(most)) if most else 0


def blocks_of(x: Tensor) -> Iterator[Tensor]:
    """The rows, `BLOCK` at a time; the last block is filled up with zeros."""
    for block in x.split(BLOCK):
        yield block if len(block) == BLOCK else F.pad(block, (0, 0, 0, BLOCK - len(block)))


def _squared(block: Tensor, centroids: Tensor, lengths: Tensor) -> Tensor:
    """Squared distances (rows, centroids); `lengths` are the squared lengths of the centroids."""
    own = block.square().sum(1, keepdim=True) + lengths
    squared = own - 2 * (block @ centroids.T)
    return squared.masked_fill_(squared < _ROUNDING * own, 0)


def _nearest(x: Tensor, centroids: Tensor, pool: BlockPool) -> tuple[Tensor, Tensor, Tensor]:
    """Number of the nearest centroid of each point, and the squared distances to it and to the second nearest."""
    lengths = centroids.square().sum(1)

    def of(block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        squared = _squared(block, centroids, lengths)
        best = squared.argmin(1, keepdim=True)  # of equal ones the first
        nearest = squared.gather(1, best)
        second = squared.scatter_(1, best, math.inf).amin(1)
        return best[:, 0], nearest[:, 0], second

    if not len(x):
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0)
    labels, nearest, second = (torch.cat(parts)[: len(x)] for parts in zip(*pool.map(of, blocks_of(x))))
    return labels, nearest, second


def _first(few: Tensor, points: Tensor, k: int, seed: int, start: int, pool: BlockPool) -> Tensor:
    """The first centroids, by greedy k-means++ (Arthur & Vassilvitskii 2007): of some candidates each time the best one.

    Candidates are drawn in proportion to their squared distance from the nearest centroid, from `few` of the points as long as
    these hold others. There are fewer than `k` if there are fewer distinct points.
    """
    tries = 2 + int(math.log(k))
    chance = Draws(seed, start, np.arange(k, dtype=np.uint64)).stream("centroids").uniform("start", shape=(tries,))
    chosen: list[Tensor] = []
    for some in (few, points):
        closest = _nearest(some, torch.stack(chosen), pool)[1] if chosen else torch.full((len(some),), math.inf)
        while len(chosen) < k:
            shares = np.cumsum(closest.double().numpy()) if chosen else np.arange(1.0, len(some) + 1)
            if not shares[-1]:
                break  # every point is a centroid
            draws = chance[len(chosen)] * shares[-1]
            candidates = some[np.minimum(np.searchsorted(shares, draws, side="right"), len(some) - 1)]
            lengths = candidates.square().sum(1)
            parts = pool.map(lambda block, c=candidates, n=lengths: _squared(block, c, n), blocks_of(some))  # type: ignore[misc]
            after = torch.minimum(closest[:, None], torch.cat(list(parts))[: len(some)])
            best = int(after.double().sum(0).argmin())
            chosen.append(candidates[best])
            closest = after[:, best]
    return torch.stack(chosen)


def _means(x: Tensor, labels: Tensor, centroids: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The mean of each cluster, or its centroid where it is empty, and its size.

    Points are summed as whole numbers, multiples of 1 / `scale`, so that the sum is the same in any order.
    """
    counts = torch.bincount(labels, minlength=len(centroids))
    sums = torch.zeros(centroids.shape, dtype=torch.int64)
    for block, own in zip(x.split(BLOCK), labels.split(BLOCK)):
        sums.index_add_(0, own, (block.double() * scale).round().long())
    means = (sums.double() / (counts.clamp_min(1)[:, None] * scale)).float()
    return torch.where(counts[:, None] > 0, means, centroids), counts


def _split_empty(centroids: Tensor, counts: Tensor) -> tuple[Tensor, int]:
    """Give each empty cluster half of the largest: both begin beside its centroid. Returns how many there were, too."""
    empty = torch.nonzero(counts == 0)[:, 0].tolist()
    if not empty:
        return centroids, 0
    centroids, counts = centroids.clone(), counts.clone()
    aside = torch.where(torch.arange(centroids.shape[1]) % 2 == 0, _SPLIT, -_SPLIT)
    for cluster in empty:
        largest = int(counts.argmax())
        whole = centroids[largest].clone()
        centroids[cluster], centroids[largest] = whole * (1 + aside), whole * (1 - aside)
        counts[cluster] = counts[largest] // 2
        counts[largest] -= counts[cluster]
    return centroids, len(empty)
