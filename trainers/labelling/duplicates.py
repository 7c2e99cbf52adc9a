"""Finds near-duplicates: images whose features are almost the same, among those of one cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch.nn import functional as F

from trainers.labelling.blocks import BLOCK, BlockPool
from trainers.labelling.hierarchy import in_groups

BYTES = 2**30
"""Bytes of vectors that are in memory at a time; those of one cluster are, however many they are."""

Vectors = Callable[[], Iterable[np.ndarray]]
"""Reads all vectors from the start, float32 (n, d) at a time, in the order of their images."""


def near_duplicates(labels: np.ndarray, vectors: Vectors, threshold: float, pool: BlockPool) -> np.ndarray:
    """Group images of one cluster whose cosine is at least `threshold`, directly or by way of others.

    The vectors are read once for each `BYTES` of them.

    Args:
        labels: the cluster of each image, int32 (n,).
        vectors: reads their vectors.
        threshold: the least cosine of near-duplicates.
        pool: threads to compute on.

    Returns:
        int64 (n,): the first image of the group of each; itself where it is alone.
    """
    first = np.arange(len(labels), dtype=np.int64)
    order = np.argsort(labels, kind="stable")
    clusters = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    width = next(iter(vectors())).shape[1]
    for part in in_groups([each for each in clusters if len(each) > 1], BYTES // (4 * width)):
        members = np.sort(np.concatenate(part))
        read = _read(vectors, members)
        for cluster in part:
            first[cluster] = cluster[_groups(read[np.searchsorted(members, cluster)], threshold, pool)]
    return first


def _read(vectors: Vectors, wanted: np.ndarray) -> torch.Tensor:
    """The vectors of these images, ascending numbers, as float32 (n, d) of length 1."""
    found, start = [], 0
    for batch in vectors():
        here = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, start + len(batch))]
        found.append(batch[here - start])
        start += len(batch)
    return F.normalize(torch.from_numpy(np.concatenate(found)), dim=1)


def _groups(x: torch.Tensor, threshold: float, pool: BlockPool) -> np.ndarray:
    """int64 (n,): the first row of the group of each row of `x`, float32 (n, d) of length 1."""
    blocks = -(-len(x) // BLOCK)
    filled = F.pad(x, (0, 0, 0, blocks * BLOCK - len(x)))  # products of one size round alike, wherever a row lies

    def alike(pair: tuple[int, int]) -> np.ndarray:
        one, other = (filled[block * BLOCK : (block + 1) * BLOCK] for block in pair)
        rows = (one @ other.T >= threshold).nonzero().numpy() + np.array(pair) * BLOCK
        return rows[(rows[:, 0] < rows[:, 1]) & (rows[:, 1] < len(x))]

    first = np.arange(len(x), dtype=np.int64)
    for rows in pool.map(alike, ((i, j) for i in range(blocks) for j in range(i, blocks))):
        if len(rows):
            first = _joined(first, rows)
    return first


def _joined(first: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The groups `first` after the pairs `rows`, int64 (m, 2), have become members of one group each."""
    into: dict[int, int] = {}

    def root(row: int) -> int:
        while row in into:
            row = into[row]
        return row

    for one, other in np.unique(first[rows], axis=0).tolist():
        low, high = sorted((root(one), root(other)))
        if low != high:
            into[high] = low
    renamed = np.arange(len(first), dtype=np.int64)
    for row in into:
        renamed[row] = root(row)
    return renamed[first]
