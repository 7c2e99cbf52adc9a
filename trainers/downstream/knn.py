"""Classifies by a vote of the nearest neighbours: how well frozen features do without any fitting."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import UserError

TEMPERATURE = 0.07
CHUNK = 1024
"""Test samples whose similarities to the whole training set are held at once."""


def knn(
    train_x: np.ndarray | Tensor,
    train_y: np.ndarray | Tensor,
    test_x: np.ndarray | Tensor,
    test_y: np.ndarray | Tensor,
    classes: int,
    neighbours: int = 20,
    temperature: float = TEMPERATURE,
) -> float:
    """Accuracy of a weighted vote of the nearest neighbours (Wu et al. 2018, "Unsupervised feature learning via non-parametric
    instance discrimination", section 3.4).

    Protocol: features are scaled to length 1, nothing else; each of the k training samples of greatest cosine s votes for its
    class with exp(s / temperature); ties go to the lower class. No augmentation, no randomness.

    Args:
        train_x: features, float (n, d).
        train_y: labels, integer (n,), 0 <= label < classes.
        test_x: features, float (m, d).
        test_y: labels, integer (m,).
        classes: number of classes.
        neighbours: k; the whole training set where that is smaller.
        temperature: of the vote.

    Raises:
        UserError: no training or no test sample.
    """
    if not len(train_x) or not len(test_x):
        raise UserError(f"downstream: neighbours need training and test samples, found {len(train_x)} and {len(test_x)}")
    bank, labels = F.normalize(torch.as_tensor(train_x).float(), dim=1), torch.as_tensor(train_y).long()
    right = 0
    for x, y in zip(torch.as_tensor(test_x).split(CHUNK), torch.as_tensor(test_y).long().split(CHUNK), strict=True):
        cosine, nearest = (F.normalize(x.float(), dim=1) @ bank.T).topk(min(neighbours, len(bank)), dim=1)
        votes = torch.zeros(len(x), classes).scatter_add_(1, labels[nearest], (cosine / temperature).exp())
        right += int((votes.argmax(1) == y).sum())
    return right / len(test_x)
