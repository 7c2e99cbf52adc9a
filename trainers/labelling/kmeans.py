"""K-means on vectors in memory, spherical or plain: greedy k-means++, then Lloyd's rounds with sums exact in any order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.draws import Draws
from trainers.labelling.blocks import BLOCK, BlockPool, blocks_of, columns_of

_START = 64, 65_536
"""K-means++ chooses among so many points a centroid, and at least so many: among few it misses the clusters of outliers."""
_STARTS, _WARM_UP = 4, 5
"""Choices of first centroids, and rounds after which the best of them is taken: one alone may miss a cluster."""
_STARTED = 128
"""Centroids of all choices together, at most: of many clusters few are missed, and choices differ little."""
_WIDE = 8 * BLOCK
"""Rows of a product with a few candidates."""
_SPLIT = 1 / 1024
"""How far the two halves of a split cluster begin from its centroid, relative to it (as in faiss)."""
_BITS, _EXACT = 30, 2**23
"""Sums count in units of 2**-30 of the largest value: those of 2**23 points are whole numbers that float64 holds, and those of
2**33 points fit in 64 bits."""
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
    few = points[: max(_START[0] * k, _START[1])]
    choices, split = max(1, min(_STARTS, _STARTED // k)), 0
    if before is not None and (before >= 0).any():
        first, split = _means_before(points, torch.from_numpy(before).long(), k, spherical)
        starts = [first]
    else:
        starts = [_first(few, points, k, seed, start, pool) for start in range(choices)]
    if len(starts) > 1:
        tried = [_lloyd(few, start, min(rounds, _WARM_UP), spherical, pool) for start in starts]
        best = min(tried, key=lambda one: one.inertia[-1])
        starts, split = [torch.from_numpy(best.centroids)], best.split
    found = _lloyd(points, starts[0], rounds, spherical, pool)
    whole = found.centroids if mean is None else found.centroids + mean
    return Clustering(whole, found.inertia, split + found.split)


def _means_before(points: Tensor, before: Tensor, k: int, spherical: bool) -> tuple[Tensor, int]:
    """The means of the points of each of `k` numbers, a number that none has being given half of the largest; and how many these
    were."""
    known = before >= 0
    sums = _Sums(points[known], k, _scale(points, spherical))
    sums.move(before[known])
    means, split = _split_empty(sums.means(torch.zeros(k, points.shape[1])), sums.counts)
    return F.normalize(means) if spherical else means, split


def _lloyd(points: Tensor, centroids: Tensor, rounds: int, spherical: bool, pool: BlockPool) -> Clustering:
    """Move each centroid to the mean of the points nearest to it, again and again, until no point changes its cluster."""
    blocks = _measured(points, pool)
    sums = _Sums(points, len(centroids), _scale(points, spherical))
    inertia, splits = [], 0
    for n in range(rounds + 1):
        labels, squared, _ = _nearest(blocks, len(points), centroids, pool, second=False)
        inertia.append(float(squared.numpy().sum(dtype=np.float64)))
        if n == rounds or not sums.move(labels):
            break
        centroids, more = _split_empty(sums.means(centroids), sums.counts)
        splits += more
        centroids = F.normalize(centroids) if spherical else centroids
    return Clustering(centroids.numpy(), inertia, splits)


def assign(
    x: np.ndarray, centroids: np.ndarray, spherical: bool, pool: BlockPool, rows: int = BLOCK
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nearest centroid of each point, of several as near the first; each point's result depends on no other point.

    Args:
        x: float32 (n, d).
        centroids: float32 (k, d).
        spherical: as of `kmeans`.
        pool: threads to compute on.
        rows: of a matrix product; another number may round otherwise.

    Returns:
        int32 (n,): its number; float32 (n,): the distance to it, of directions 1 - cosine; float32 (n,): how much further the
        next centroid is, infinite where there is none.
    """
    middle = None if spherical else centroids.mean(0, dtype=np.float64).astype(np.float32)
    points, around = (_prepared(torch.from_numpy(part), middle) for part in (x, centroids))
    labels, nearest, second = _nearest(_measured(points, pool, rows), len(points), around, pool)
    assert second is not None
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


def _squared(own: Tensor, lengths: Tensor, half: Tensor) -> Tensor:
    """Squared distances from the squared lengths of both, and from half the squared length of one less the product of both."""
    return _rounded(own + 2 * half, own + lengths)


def _rounded(squared: Tensor, lengths: Tensor) -> Tensor:
    """Squared distances, those that are rounding as 0; `lengths` are the sums of both squared lengths."""
    return squared.masked_fill(squared < _ROUNDING * lengths, 0)


def _measured(x: Tensor, pool: BlockPool, rows: int = BLOCK) -> list[tuple[Tensor, Tensor]]:
    """Blocks of rows, and the squared length of each row, (rows, 1)."""
    return list(pool.map(lambda block: (block, block.square().sum(1, keepdim=True)), blocks_of(x, rows)))


def _nearest(
    blocks: list[tuple[Tensor, Tensor]], n: int, centroids: Tensor, pool: BlockPool, second: bool = True
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Number of the nearest centroid of each point, and the squared distances to it and, if asked for, to the second nearest.

    Args:
        blocks: of the points, see `_measured`.
        n: how many points there are.
        centroids: float32 (k, d).
        pool: threads to compute on.
        second: whether to look for the second nearest.
    """
    lengths, turned = centroids.square().sum(1), columns_of(centroids)
    halves = F.pad(lengths / 2, (0, turned.shape[1] - len(centroids)), value=math.inf)

    def of(part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        block, own = part
        half = torch.addmm(halves, block, turned, alpha=-1)
        best = torch.from_numpy(half.numpy().argmin(1)).unsqueeze(1)  # of equal ones the first; numpy's is the faster
        nearest = _squared(own, lengths[best], half.gather(1, best))
        if not second:
            return best[:, 0], nearest[:, 0], None
        least = half.scatter_(1, best, math.inf).amin(1, keepdim=True)
        return best[:, 0], nearest[:, 0], torch.maximum(own + 2 * least, nearest)[:, 0]

    if not n:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0) if second else None
    labels, nearest, others = zip(*pool.map(of, blocks))
    return torch.cat(labels)[:n], torch.cat(nearest)[:n], torch.cat(others)[:n] if second else None


def _first(few: Tensor, points: Tensor, k: int, seed: int, start: int, pool: BlockPool) -> Tensor:
    """The first centroids, by greedy k-means++ (Arthur & Vassilvitskii 2007): of some candidates each time the best one.

    Candidates are drawn in proportion to their squared distance from the nearest centroid, from `few` of the points as long as
    these hold others. There are fewer than `k` if there are fewer distinct points.
    """
    tries = 2 + int(math.log(k))
    chance = Draws(seed, start, np.arange(k, dtype=np.uint64)).stream("centroids").uniform("start", shape=(tries,))
    chosen: list[Tensor] = []

    def after(part: tuple[tuple[Tensor, Tensor], Tensor], candidates: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances to the nearest centroid with each candidate, (rows, tries), still with rounding, and their sums."""
        (block, own), closest = part
        nearer = torch.addmm(lengths, block, candidates.T, alpha=-2).add_(own)
        return torch.minimum(nearer, closest, out=nearer), nearer.sum(0)

    for some in (few, points):
        n, blocks = len(some), _measured(some, pool, _WIDE)
        whole = torch.full((len(blocks) * _WIDE, 1), math.inf)
        if chosen:
            whole[:n, 0] = _nearest(_measured(some, pool), n, torch.stack(chosen), pool, second=False)[1]
        whole[n:] = 0
        closest = list(whole.split(_WIDE))
        while len(chosen) < k:
            shares = np.cumsum(torch.cat(closest)[:n, 0].double().numpy()) if chosen else np.arange(1.0, n + 1)
            if not shares[-1]:
                break  # every point is a centroid
            draws = chance[len(chosen)] * shares[-1]
            candidates = some[np.minimum(np.searchsorted(shares, draws, side="right"), n - 1)]
            lengths = candidates.square().sum(1)
            nearer, sums = zip(*pool.map(partial(after, candidates=candidates, lengths=lengths), zip(blocks, closest)))
            best = int(torch.stack(sums).numpy().sum(0, dtype=np.float64).argmin())
            chosen.append(candidates[best])
            closest = [_rounded(part[:, best : best + 1], own + lengths[best]) for part, (_, own) in zip(nearer, blocks)]
    return torch.stack(chosen)


class _Sums:
    """The sum of the points of each cluster, in whole numbers, so that it is the same in any order.

    Args:
        points: float32 (n, d).
        k: clusters.
        scale: points are summed as multiples of 1 / `scale`.
    """

    def __init__(self, points: Tensor, k: int, scale: float) -> None:
        self._points, self._scale = points, scale
        self._sums = torch.zeros(k, points.shape[1], dtype=torch.int64)
        self._labels: Tensor | None = None
        self.counts = torch.zeros(k, dtype=torch.int64)
        """int64 (k,): points of each cluster."""

    def move(self, labels: Tensor) -> bool:
        """Give each point its label, int64 (n,): only those whose label is another are summed. Returns whether there are some."""
        rows = torch.arange(len(labels)) if self._labels is None else torch.nonzero(labels != self._labels)[:, 0]
        if self._labels is not None:
            self._add(rows, self._labels, -1)
        self._add(rows, labels, 1)
        self._labels = labels
        return bool(len(rows))

    def means(self, centroids: Tensor) -> Tensor:
        """float32 (k, d): the mean of each cluster, or its centroid where it is empty."""
        means = (self._sums.double() / (self.counts.clamp_min(1)[:, None] * self._scale)).float()
        return torch.where(self.counts[:, None] > 0, means, centroids)

    def _add(self, rows: Tensor, labels: Tensor, sign: int) -> None:
        for part in rows.split(_EXACT):
            sums = torch.zeros(self._sums.shape, dtype=torch.float64)  # faster than whole numbers
            for some in part.split(_WIDE):
                sums.index_add_(0, labels[some], self._points[some].double().mul_(self._scale).round_())
            self._sums += sign * sums.long()
        self.counts += sign * torch.bincount(labels[rows], minlength=len(self.counts))


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
