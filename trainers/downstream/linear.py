"""The linear probe: how well a linear classifier does on frozen features."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import UserError

DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Weight decays that are tried, strongest first, so that each fit starts from a smoother one."""

MOST_STEPS = 100
"""L-BFGS steps of a fit; most stop earlier."""


def linear_probe(
    train_x: np.ndarray | Tensor,
    train_y: np.ndarray | Tensor,
    test_x: np.ndarray | Tensor,
    test_y: np.ndarray | Tensor,
    classes: int,
    seed: int,
) -> float:
    """Accuracy of multinomial logistic regression on frozen features.

    Protocol: every feature is standardised by the training set's mean and deviation; full-batch L-BFGS on the mean
    cross-entropy plus decay / 2 times the squared weights (biases free), from zero weights; the decay falls through `DECAYS`
    for as long as the cross-entropy on a held-out tenth of the training set, drawn by `seed`, falls too; then a fit on the
    whole training set. The test set is used once, for the accuracy. No augmentation. The result is a function of the arguments.

    Args:
        train_x: features, float (n, d).
        train_y: labels, integer (n,), 0 <= label < classes.
        test_x: features, float (m, d).
        test_y: labels, integer (m,).
        classes: number of classes.
        seed: of the held-out tenth.

    Raises:
        UserError: fewer than two training samples, or no test sample.
    """
    x, y = torch.as_tensor(train_x).float(), torch.as_tensor(train_y).long()
    if len(x) < 2 or not len(test_x):
        raise UserError(
            f"downstream: a linear probe needs two training samples and a test sample, found {len(x)} and {len(test_x)}"
        )
    deviation, mean = torch.std_mean(x, dim=0, correction=0)
    deviation = torch.where(deviation > 1e-6, deviation, 1.0)  # a constant feature says nothing, and must not become noise
    x = (x - mean) / deviation

    order = torch.from_numpy(np.random.Generator(np.random.Philox(seed)).permutation(len(x)))
    held, kept = order[: max(1, len(x) // 10)], order[max(1, len(x) // 10) :]
    start = torch.zeros(x.shape[1] + 1, classes)
    best = (math.inf, DECAYS[0], start)
    for decay in DECAYS:
        start = _fit(x[kept], y[kept], decay, start)
        loss = F.cross_entropy(_scores(x[held], start), y[held]).item()
        if loss > best[0]:
            break
        best = (loss, decay, start)
    fitted = _fit(x, y, best[1], best[2])
    scores = _scores((torch.as_tensor(test_x).float() - mean) / deviation, fitted)
    return (scores.argmax(1) == torch.as_tensor(test_y).long()).double().mean().item()


def _scores(x: Tensor, weights: Tensor) -> Tensor:
    return x @ weights[1:] + weights[0]


def _fit(x: Tensor, y: Tensor, decay: float, start: Tensor) -> Tensor:
    """Weights, float (1 + d, classes), the biases in the first row."""
    weights = start.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [weights], max_iter=MOST_STEPS, history_size=20, tolerance_grad=1e-5, tolerance_change=1e-6, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(_scores(x, weights), y) + decay / 2 * weights[1:].square().sum()
        loss.backward()
        return loss

    solver.step(objective)
    return weights.detach()
