"""K-means in two levels, for very many clusters: coarse ones first, then those of each coarse one in its own points."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from trainers.labelling.blocks import BlockPool
from trainers.labelling.kmeans import Clustering, assign, kmeans

BYTES = 2**30
"""Bytes of points that are in memory at a time; those of one coarse cluster are, however many they are."""
_ROWS = 32
"""Rows of a matrix product with the centroids of one coarse cluster: few of the points that are read together are in it."""


@dataclass(frozen=True)
class Centroids:
    """The centroids of a clustering, in one level or two.

    Args:
        fine: float32 (k, d).
        spherical: whether directions are compared, see `kmeans`.
        coarse: float32 (c, d): coarse centroids, to each of which some of `fine` belong; None in one level.
        sizes: int64 (c,): how many of `fine` belong to each, one after the other.
    """

    fine: np.ndarray
    spherical: bool
    coarse: np.ndarray | None = None
    sizes: np.ndarray | None = None

    def assign(self, x: np.ndarray, pool: BlockPool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The nearest centroid of each point, as `kmeans.assign` finds it.

        In two levels it is the nearest one of those of the nearest coarse centroid: another part may have one that is nearer. The
        margin, too, is that to the next one of the same part.
        """
        if self.coarse is None or self.sizes is None:
            return assign(x, self.fine, self.spherical, pool)
        parts = assign(x, self.coarse, self.spherical, pool)[0]
        found = np.zeros(len(x), np.int32), np.zeros(len(x), np.float32), np.zeros(len(x), np.float32)
        order, ends = np.argsort(parts, kind="stable"), np.cumsum(self.sizes)
        for rows in np.split(order, np.flatnonzero(np.diff(parts[order])) + 1):
            if not len(rows):
                continue
            end, size = int(ends[parts[rows[0]]]), int(self.sizes[parts[rows[0]]])
            labels, distance, margin = assign(x[rows], self.fine[end - size : end], self.spherical, pool, _ROWS)
            for column, values in zip(found, (labels + np.int32(end - size), distance, margin)):
                column[rows] = values
        return found


Points = Callable[[np.ndarray], Iterator[tuple[np.ndarray, np.ndarray]]]
"""Reads some of the points, given by ascending numbers: which of those asked for, and float32 (m, d), some at a time."""


def two_levels(
    read: Points, n: int, k: int, spherical: bool, rounds: int, seed: int, pool: BlockPool, each: int
) -> tuple[Clustering, Clustering, np.ndarray]:
    """Cluster points in two levels: the square root of `k` coarse clusters, and `k` in all.

    A coarse cluster has as many of the `k` as its share of the points is. Memory holds `each` points a coarse centroid, or as
    many as `BYTES` allow, or those of one coarse cluster.

    Args:
        read: reads points.
        n: how many points there are.
        k: how many clusters.
        spherical, rounds, seed, pool: as of `kmeans`.
        each: points a coarse centroid, the first ones, from which the coarse clusters are made.

    Returns:
        The fine clustering, whose inertia is that of all parts together; the coarse one; and int64 (c,), how many of the fine
        centroids belong to each coarse one.
    """
    count = max(1, round(k**0.5))
    first = together(read, np.arange(min(n, each * count)))
    coarse = kmeans(first, count, spherical, rounds, seed, pool)
    parts = np.zeros(n, np.int32)
    for which, x in read(np.arange(n)):
        parts[which] = assign(x, coarse.centroids, spherical, pool)[0]
    members = [np.flatnonzero(parts == part) for part in range(len(coarse.centroids))]
    wanted = shares(np.array([len(rows) for rows in members]), k)
    found: list[Clustering] = []
    for group in in_groups(members, BYTES // (4 * first.shape[1])):
        numbers = np.sort(np.concatenate(group))
        x = together(read, numbers)
        for rows in group:
            part = len(found)
            own = x[np.searchsorted(numbers, rows)]
            alone = Clustering(coarse.centroids[part : part + 1], [0.0], 0)
            found.append(kmeans(own, int(wanted[part]), spherical, rounds, seed, pool) if len(rows) else alone)
    longest = max(len(one.inertia) for one in found)
    inertia = [sum(one.inertia[min(step, len(one.inertia) - 1)] for one in found) for step in range(longest)]
    fine = Clustering(np.concatenate([one.centroids for one in found]), inertia, sum(one.split for one in found))
    return fine, coarse, np.array([len(one.centroids) for one in found], np.int64)


def together(read: Points, numbers: np.ndarray) -> np.ndarray:
    """These points, ascending numbers, in one array, float32 (n, d)."""
    found: np.ndarray | None = None
    for which, x in read(numbers):
        if found is None:
            found = np.zeros((len(numbers), x.shape[1]), np.float32)
        found[which] = x
    assert found is not None
    return found


def shares(sizes: np.ndarray, k: int) -> np.ndarray:
    """int64: `k` divided among parts, 1 to each and the others in proportion to `sizes`; of equal remainders the first go up."""
    exact = sizes * ((k - len(sizes)) / max(1, int(sizes.sum())))
    whole = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: k - len(sizes) - int(whole.sum())]] += 1
    return whole + 1


def in_groups(parts: list[np.ndarray], most: int) -> Iterator[list[np.ndarray]]:
    """Parts, in order, of at most `most` points together, or one part."""
    group: list[np.ndarray] = []
    for part in parts:
        if group and sum(map(len, group)) + len(part) > most:
            yield group
            group = []
        group.append(part)
    if group:
        yield group
