"""The attentive probe: a query that is learnt looks at all positions of a frozen map, and a linear classifier at what it sees."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.downstream.features import FeatureRows, Rank
from trainers.downstream.guesses import Guesses
from trainers.downstream.minibatches import FeatureProbe, learn, moments
from trainers.networks.backbones import Backbone, seeded

HEADS = (8, 4, 2, 1)
DECAY = 1e-3
BATCH, RATE = 256, 1e-3


class Positions(nn.Module):
    """The map of a backbone as a list of positions, in evaluation mode.

    Args:
        backbone: built with the output `map`.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Compute float (n, positions, map_width) of normalised images, float (n, 3, h, w)."""
        grid = self.backbone(x).map
        assert isinstance(grid, Tensor)
        return grid.flatten(2).transpose(1, 2)


class AttentivePooling(FeatureProbe):
    """Cross-attention of one learnt query over the positions, then a linear classifier.

    Args:
        mean: float (d,).
        deviation: float (d,).
        classes: number of classes.
    """

    def __init__(self, mean: Tensor, deviation: Tensor, classes: int) -> None:
        super().__init__(mean, deviation)
        width = len(mean)
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.attention = nn.MultiheadAttention(width, next(n for n in HEADS if width % n == 0), batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores, float (n, classes), of maps, float (n, positions, d)."""
        positions = self.standard(x)
        seen, _ = self.attention(self.query.expand(len(x), -1, -1), positions, positions, need_weights=False)
        return self.head(seen[:, 0])

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        if not len(x):  # a rank without samples does not know their shape
            return sum((0 * weight.sum() for weight in self.parameters()), torch.zeros((), device=x.device))
        return F.cross_entropy(self(x), y, reduction="sum")

    def decay(self) -> None:
        for weight in self.parameters():
            if weight.ndim > 1 and weight.grad is not None:
                weight.grad += DECAY * weight.detach()


def look(train: FeatureRows, test: FeatureRows, classes: int, seed: int, rank: Rank) -> Guesses:
    """Classify a rank's test maps by an attentive probe (Chen et al., "Context autoencoder for self-supervised representation
    learning", IJCV 2023, section 4.1); to be called on every rank.

    Protocol: channels are standardised by mean and deviation over the training maps' positions; one learnt query attends to all
    positions with 8 heads (fewer where the width is no multiple of 8), and a linear layer names the class. Adam on the mean
    cross-entropy plus 0.0005 times the squared weights, minibatches of 256, see `trainers.downstream.minibatches.learn`. Nothing
    is chosen on held-out images. The test set is used once. No augmentation.

    Args:
        train: this rank's training maps, (n, positions, d).
        test: this rank's test maps.
        classes: number of classes.
        seed: of the first weights and the minibatches.
        rank: this rank.
    """
    mean, deviation = moments(train, rank)
    with seeded(seed):
        probe = AttentivePooling(mean.cpu(), deviation.cpu(), classes)
    probe.to(rank.device)
    learn(probe, train, np.ones(len(train), bool), seed, rank, BATCH, RATE)
    probe.eval()
    with torch.inference_mode():
        scores = [probe(x) for _, x in test.chunks(rank.device, BATCH)]
    return Guesses.of_scores(test.ids, test.y, scores)
