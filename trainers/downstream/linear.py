"""The linear probe: how well a linear classifier does on frozen features."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import UserError
from trainers.downstream.features import MANY, FeatureRows, Rank
from trainers.downstream.guesses import Guesses
from trainers.downstream.minibatches import LinearStack, components, held_out, learn, moments
from trainers.learning.ranks import gathered

DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Weight decays that are tried, strongest first, so that each fit starts from a smoother one."""

MOST_STEPS = 100
"""L-BFGS steps of a fit; most stop earlier."""

FULL_BATCH, MINIBATCHES = "full batch", "minibatches"
"""How a probe was fitted, in results."""


def linear_probe(
    train_x: np.ndarray | Tensor,
    train_y: np.ndarray | Tensor,
    test_x: np.ndarray | Tensor,
    test_y: np.ndarray | Tensor,
    classes: int,
    seed: int,
) -> float:
    """Accuracy of multinomial logistic regression on frozen features, see `classify`.

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
    if len(train_x) < 2 or not len(test_x):
        raise UserError(
            f"downstream: a linear probe needs two training samples and a test sample, found {len(train_x)} and {len(test_x)}"
        )
    guesses, _ = classify(FeatureRows.of(train_x, train_y), FeatureRows.of(test_x, test_y), classes, seed, Rank())
    return float((guesses.named == np.asarray(test_y)).mean())


def classify(train: FeatureRows, test: FeatureRows, classes: int, seed: int, rank: Rank, many: int = MANY) -> tuple[Guesses, str]:
    """Classify a rank's test samples by multinomial logistic regression; to be called on every rank.

    Protocol: every feature is standardised by the training set's mean and deviation. Few features are gathered and learnt as a
    full batch, see `_full_batch`; many stay on their ranks and are learnt by minibatches, see `_by_minibatches`. The test set is
    used once. No augmentation. The result is a function of the arguments; that of minibatches depends on the number of ranks by
    the rounding of sums only.

    Args:
        train: this rank's training features.
        test: this rank's test features.
        classes: number of classes.
        seed: of what is held out, and of the minibatches.
        rank: this rank.
        many: from how many numbers on the training features of all ranks are many.

    Returns:
        The guesses, and which of the two ways it was: `FULL_BATCH` or `MINIBATCHES`.
    """
    few = sum(gathered([train.x.size], rank.world)) < many
    mean, deviation, weights = (_full_batch if few else _by_minibatches)(train, classes, seed, rank)
    scores = [_scores((x - mean) / deviation, weights) for _, x in test.chunks(rank.device)]
    return Guesses.of_scores(test.ids, test.y, scores), FULL_BATCH if few else MINIBATCHES


def _full_batch(train: FeatureRows, classes: int, seed: int, rank: Rank) -> tuple[Tensor, ...]:
    """Mean, deviation and weights, float (1 + d, classes), by the first rank's processor.

    L-BFGS on the mean cross-entropy plus decay / 2 times the squared weights (biases free), from zero weights; the decay falls
    through `DECAYS` for as long as the cross-entropy on a held-out tenth of the training set, drawn by `seed`, falls too; then a
    fit on the whole training set.
    """
    rows = train.together(rank.world)
    found = _fitted(torch.from_numpy(rows.x).float(), torch.from_numpy(rows.y), classes, seed) if not rank.number else None
    fitted = next(part for part in gathered([found], rank.world) if part is not None)
    return tuple(part.to(rank.device) for part in fitted)


def _fitted(x: Tensor, y: Tensor, classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
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
    return mean, deviation, _fit(x, y, best[1], best[2])


def _by_minibatches(train: FeatureRows, classes: int, seed: int, rank: Rank) -> tuple[Tensor, ...]:
    """Mean, deviation and weights, float (1 + d, classes), learnt on all ranks' devices.

    The same objective with all of `DECAYS` side by side, by `trainers.downstream.minibatches.learn`, on the training set without
    a held-out part; the decay with the least cross-entropy on that part is taken. There is no further fit on the whole.
    """
    mean, deviation = moments(train, rank)
    held = held_out(train.ids, seed, sum(gathered([len(train)], rank.world)))
    stack = LinearStack(mean, deviation, components(train, mean, deviation, rank), classes, DECAYS).to(rank.device)
    learn(stack, train, ~held, seed, rank)
    return mean, deviation, stack.best(train, held, rank)


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
