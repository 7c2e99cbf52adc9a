"""Principal components of features, whitened or not: fewer numbers for each image, of which the first say most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainers.labelling.blocks import BLOCK, BlockPool, blocks_of, columns_of

_FLAT = 1e-10
"""A direction in which features vary by less than this share of the first one's variance is left out: it is rounding."""


@dataclass(frozen=True)
class Components:
    """A projection of features.

    Args:
        table: float32 (1 + c, d): the mean of the features, then a row for each component; whitened ones are divided by the
            standard deviation that features have along them.
        share: how much of the features' variance the components have.
    """

    table: np.ndarray
    share: float

    @property
    def width(self) -> int:
        """How many components there are."""
        return len(self.table) - 1


def components(x: np.ndarray, width: int, whiten: bool, pool: BlockPool) -> Components:
    """The principal components of points, by an eigendecomposition of their covariance in float64.

    The result is a function of the points in their order: the number of threads changes no bit. The largest number of each
    component is positive.

    Args:
        x: float32 (n, d), n at least 1.
        width: how many components, at most d; there are fewer if the points vary in fewer directions, but one at least.
        whiten: divide by the standard deviation, so that all components vary alike.
        pool: threads to compute on.
    """
    points, mean = torch.from_numpy(x), torch.from_numpy(x.mean(0, dtype=np.float64))

    def product(block: Tensor) -> Tensor:
        away = block.double() - mean
        return away.T @ away

    full, rest = points[: len(points) // BLOCK * BLOCK], points[len(points) // BLOCK * BLOCK :]
    covariance = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for part in pool.map(product, [*full.split(BLOCK), rest]):
        covariance += part / len(x)
    ((values, vectors),) = pool.map(torch.linalg.eigh, [covariance])  # with one thread of torch, as all that rounds
    values, vectors = values.flip(0).clamp_min(0), vectors.T.flip(0)
    kept = max(1, min(width, int((values > _FLAT * values[0]).sum())))
    rows = vectors[:kept] * vectors[:kept].gather(1, vectors[:kept].abs().argmax(1, keepdim=True)).sign()
    if whiten and values[0] > 0:
        rows = rows / values[:kept, None].sqrt()
    share = float(values[:kept].sum() / values.sum()) if values[0] > 0 else 1.0
    return Components(torch.cat([mean[None], rows]).float().numpy(), share)


def projected(x: np.ndarray, table: np.ndarray, pool: BlockPool) -> np.ndarray:
    """Points, float32 (n, d), in the components of a `Components.table`: float32 (n, c); each depends on no other point."""
    mean, turned, width = torch.from_numpy(table[0]), columns_of(torch.from_numpy(table[1:])), len(table) - 1
    if not len(x):
        return np.zeros((0, width), np.float32)
    parts = pool.map(lambda block: ((block - mean) @ turned)[:, :width], blocks_of(torch.from_numpy(x)))
    return torch.cat(list(parts))[: len(x)].numpy()
