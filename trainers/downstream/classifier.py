"""A backbone with a linear classifier on top, for fine-tuning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.recipe.schema import Recipe
from trainers.downstream.problem import TunedNetwork
from trainers.networks.backbones import Backbone, build_backbone, seeded
from trainers.networks.inputs import Normaliser
from trainers.objectives import Outcome

OBJECTIVE = "class"


class Classifier(TunedNetwork):
    """Predicts the column `class` from the column `image`; nothing is frozen.

    Args:
        recipe: `training.backbone` and `image` are read.
        classes: number of classes.
        weights: of the backbone, or None to start from random ones (drawn from the recipe's seed).

    Attributes:
        untrained: names of the backbone's weights that start random although `weights` are given, since these lack them.
    """

    def __init__(self, recipe: Recipe, classes: int, weights: dict[str, Any] | None) -> None:
        super().__init__()
        self.backbone = build_backbone(recipe.training.backbone, recipe.image.size, recipe.seed, ("vector",))
        self.untrained = [] if weights is None else self.backbone.load(weights)
        with seeded(recipe.seed):
            self.head = nn.Linear(self.backbone.vector_width, classes)
        self.pixels = Normaliser(recipe.image.mean, recipe.image.std)

    def normalising(self) -> Backbone:
        return self.backbone

    def logits(self, image: Tensor) -> Tensor:
        """Float32 (n, classes) of uint8 images (n, h, w, 3)."""
        return self.head(self.backbone(self.pixels(image)).vector).float()

    def forward(self, batch: dict[str, Tensor], only: str = OBJECTIVE) -> dict[str, Outcome]:
        """Cross-entropy and accuracy, as the only objective; samples of weight 0, such as those without a label, do not count."""
        weight, label = batch["weight"], batch["class"].clamp_min(0)
        logits = self.logits(batch["image"])
        with torch.no_grad():
            right = (weight * (logits.argmax(1) == label)).sum()
            count = weight.sum()
        loss = (weight * F.cross_entropy(logits, label, reduction="none")).sum()
        return {only: Outcome(loss, right, count / logits.shape[1], count)}
