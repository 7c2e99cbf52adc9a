"""Balances what a network says over all images, so that each class is given as many: Sinkhorn-Knopp on blocks of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

SHARPNESS = 25.0
"""Lambda of Asano et al. 2020: the power to which probabilities are raised. Greater ones assign each image to one class."""
TOLERANCE = 0.1
"""The balance is good enough if the classes' deviations, relative to an even share, sum to less than this (as in their code)."""
MOST_ROUNDS = 200

_BITS = 30
_LEAST = 2.0**-40  # of an even share: an empty class comes nearer by this factor a round


def balance(blocks: Callable[[], Iterable[Tensor]], classes: int, rounds: int = MOST_ROUNDS) -> tuple[np.ndarray, list[float]]:
    """Find what has to be added to each class's scores so that all classes are given as much.

    The transport plan of Asano et al. 2020, equation 6, is softmax(SHARPNESS * log p + offset) for each image: of its two factors
    that of the images normalises a row, and that of the classes is kept, as its logarithm. Shares are summed as whole numbers, so
    that the result is the same in any order of the images.

    Args:
        blocks: returns the logarithms of the probabilities of all images, float (rows, classes) each, once a call.
        classes: how many there are.
        rounds: at most.

    Returns:
        float64 (classes,): the offsets; and for each round the sum of the classes' deviations from an even share.
    """
    offsets = torch.zeros(classes, dtype=torch.float64)
    errors: list[float] = []
    while True:
        sums, images = torch.zeros(classes, dtype=torch.int64), 0
        for block in blocks():
            sums += (plan(block, offsets) * 2**_BITS).round().long().sum(0)
            images += len(block)
        share = sums.double() * (classes / (images * 2**_BITS))  # 1 is an even one
        errors.append(float((share - 1).abs().sum()))
        if errors[-1] < TOLERANCE or len(errors) > rounds:
            return offsets.numpy(), errors
        offsets -= share.clamp_min(_LEAST).log()


def plan(log_probabilities: Tensor, offsets: Tensor) -> Tensor:
    """How much of each image goes to each class, float64 (n, classes), of the logarithms of its probabilities."""
    return torch.softmax(SHARPNESS * log_probabilities.double() + offsets, 1)


def evenness(sizes: Iterable[int]) -> float:
    """The effective number of classes of these sizes: the exponential of their entropy, from 1 to how many there are."""
    counts = np.array([size for size in sizes if size], np.float64)
    shares = counts / max(1.0, counts.sum())
    return math.exp(float(-(shares * np.log(shares)).sum()))
