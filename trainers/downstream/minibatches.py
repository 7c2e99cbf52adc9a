"""Learns a probe by minibatches of features that lie on all ranks; a sample's minibatch is drawn by its id."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.draws import Draws
from trainers.downstream.features import FeatureRows, Rank
from trainers.learning.ranks import gathered, summed

BATCH = 2048
"""Samples of a minibatch of a linear probe, on all ranks."""

EPOCHS, LEAST_EPOCHS = 20, 5
LEAST_STEPS, MOST_STEPS = 500, 2_500
RATE = 3e-2
"""Learning rate of a linear probe at first."""

HELD_OUT, MOST_HELD_OUT = 0.1, 50_000
MOST_AXES = 4096
_LEAST_VARIANCE = 1e-6  # where all features are constant


class FeatureProbe(nn.Module):
    """A probe that is learnt by `learn`.

    Attributes:
        mean, deviation: of each feature, by which `forward` standardises.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def standard(self, x: Tensor) -> Tensor:
        """Standardised features."""
        return (x - self.mean) / self.deviation

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum of the samples' losses, which is differentiated."""
        raise NotImplementedError

    def decay(self) -> None:
        """Add to the gradients of the mean loss those of the penalty on the weights."""


class LinearStack(FeatureProbe):
    """Linear classifiers with different weight decays, which learn side by side and do not touch each other.

    What is learnt are the weights by principal components of the features, each scaled to about unit variance: in these
    coordinates gradients of features that depend on each other converge as fast as others. The decay is that of the weights by
    features.

    Args:
        mean: float (d,).
        deviation: float (d,).
        basis: float (d, d) and (d,): as of `components`.
        classes: number of classes.
        decays: of the classifiers.
    """

    def __init__(
        self, mean: Tensor, deviation: Tensor, basis: tuple[Tensor, Tensor], classes: int, decays: Sequence[float]
    ) -> None:
        super().__init__(mean, deviation)
        self.biases = nn.Parameter(torch.zeros(len(decays), 1, classes))
        self.scaled = nn.Parameter(torch.zeros(len(decays), len(mean), classes))
        self.register_buffer("_axes", basis[0] * basis[1])
        self.register_buffer("_decays", torch.tensor(decays)[:, None, None] * basis[1].square()[:, None].cpu())

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """float (decays,): the summed cross-entropy of each classifier."""
        scores = self.standard(x) @ (self.get_buffer("_axes") @ self.scaled) + self.biases
        return torch.stack([F.cross_entropy(one, y, reduction="sum") for one in scores])

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.losses(x, y).sum()

    def decay(self) -> None:
        assert self.scaled.grad is not None
        self.scaled.grad += self.get_buffer("_decays") * self.scaled.detach()

    @torch.inference_mode()
    def best(self, train: FeatureRows, held: np.ndarray, rank: Rank) -> Tensor:
        """Weights, float (1 + d, classes), of the classifier with the least cross-entropy on all ranks' held-out samples."""
        total = torch.zeros(len(self.biases), dtype=torch.float64, device=rank.device)
        for here, x in train.chunks(rank.device):
            rows = torch.from_numpy(np.flatnonzero(held[here]))
            y = torch.from_numpy(train.y[here])[rows].to(rank.device)
            total += self.losses(x[rows.to(rank.device)], y)
        chosen = int(summed(total, rank.world).argmin())
        return torch.cat([self.biases[chosen], self.get_buffer("_axes") @ self.scaled[chosen]]).detach()


def moments(train: FeatureRows, rank: Rank) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature over all ranks and positions, float (d,) on the rank's device.

    The deviation is 1 where a feature is constant: that says nothing, and must not become noise.
    """
    width = max(gathered([train.x.shape[-1]], rank.world))  # a rank without samples does not know it
    sums = torch.zeros(3, width, dtype=torch.float64, device=rank.device)
    for _, x in train.chunks(rank.device):
        flat = x.reshape(-1, width).double()
        sums += torch.stack([torch.ones_like(flat[0]) * len(flat), flat.sum(0), flat.square().sum(0)])
    count, mean, square = summed(sums, rank.world)
    mean = mean / count
    deviation = (square / count - mean.square()).clamp_min(0).sqrt()
    deviation = torch.where(deviation > 1e-6, deviation, 1.0)
    return mean.float().to(rank.device), deviation.float().to(rank.device)


def components(train: FeatureRows, mean: Tensor, deviation: Tensor, rank: Rank) -> tuple[Tensor, Tensor]:
    """The principal axes of standardised features over all ranks, and a scale of each.

    Returns:
        Float (d, d), an axis a column, and float (d,), by which features along an axis have a variance of about 1; axes of less
        than a hundredth of the average variance stay smaller. More than `MOST_AXES` features stay as they are.
    """
    width = len(mean)
    if width > MOST_AXES:
        return torch.eye(width, device=rank.device), torch.ones(width, device=rank.device)
    products = torch.zeros(width, width, device=rank.device)
    for _, x in train.chunks(rank.device):
        standard = (x - mean) / deviation
        products += standard.T @ standard
    count = sum(gathered([len(train)], rank.world))
    total = summed(products, rank.world)
    # By one rank for all: on other processors axes may point the other way.
    found = [torch.linalg.eigh(total.double() / count)] if not rank.number else []
    variances, axes = gathered(found, rank.world)[0]
    scale = (variances.clamp_min(0) + 0.01 * variances.mean()).clamp_min(_LEAST_VARIANCE).rsqrt()
    return axes.float().to(rank.device), scale.float().to(rank.device)


def held_out(ids: np.ndarray, seed: int, total: int) -> np.ndarray:
    """bool (n,): a tenth of the samples, at most `MOST_HELD_OUT` of `total`, drawn by id."""
    share = min(HELD_OUT, MOST_HELD_OUT / max(1, total))
    return Draws(seed, 0, ids).stream("probe").uniform("held out") < share


def learn(
    probe: FeatureProbe, train: FeatureRows, used: np.ndarray, seed: int, rank: Rank, batch: int = BATCH, rate: float = RATE
) -> None:
    """Learn by Adam (Kingma & Ba 2015) with a learning rate that falls to 0 as a cosine; to be called on every rank.

    The minibatch that a sample is in is drawn by its id, anew in each epoch, so it is the same on any number of ranks;
    minibatches have `batch` samples on average. There are `EPOCHS` epochs, more where these have fewer than `LEAST_STEPS` steps,
    and fewer, but `LEAST_EPOCHS`, where they have more than `MOST_STEPS`.

    Args:
        probe: on the rank's device.
        train: this rank's features.
        used: bool (n,): which of them.
        seed: of the minibatches.
        rank: this rank.
        batch: samples of a minibatch on all ranks.
        rate: the learning rate at first.
    """
    rows = np.flatnonzero(used)
    number = max(1, round(sum(gathered([len(rows)], rank.world)) / batch))
    epochs = max(min(EPOCHS, MOST_STEPS // number), LEAST_EPOCHS, math.ceil(LEAST_STEPS / number))
    solver = torch.optim.Adam(probe.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(solver, epochs * number)
    for epoch in range(epochs):
        drawn = Draws(seed, epoch, train.ids[rows]).stream("probe").integers("minibatch", number)
        order = np.argsort(drawn, kind="stable")
        for here in np.split(rows[order], np.searchsorted(drawn[order], np.arange(1, number))):
            solver.zero_grad()
            y = torch.from_numpy(train.y[here]).to(rank.device)
            probe.loss(train.some(here, rank.device), y).backward()
            _average(probe, len(here), rank)
            probe.decay()
            solver.step()
            schedule.step()


def _average(probe: FeatureProbe, count: int, rank: Rank) -> None:
    """Make the gradients of sums over a rank's samples those of the mean over all ranks' samples."""
    gradients = [weight.grad for weight in probe.parameters() if weight.grad is not None]
    sums = summed(torch.cat([*(part.flatten() for part in gradients), torch.tensor([count], device=rank.device)]), rank.world)
    means = (sums[:-1] / sums[-1].clamp_min(1)).to(rank.device)
    for part, mean in zip(gradients, means.split([part.numel() for part in gradients])):
        part.copy_(mean.view_as(part))
