"""A backbone with a linear classifier on top, for fine-tuning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.recipe.schema import Recipe
from trainers.backbones import build_backbone, seeded
from trainers.inputs import Normaliser
from trainers.objectives import Outcome

OBJECTIVE = "class"


class Classifier(nn.Module):
    """Predicts the column `class` from the column `image`; nothing is frozen.

    Args:
        recipe: `training.backbone` and `image` are read.
        classes: number of classes.
        weights: of the backbone, or None to start from random ones (drawn from the recipe's seed).
    """

    def __init__(self, recipe: Recipe, classes: int, weights: dict[str, Any] | None) -> None:
        super().__init__()
        self.backbone = build_backbone(recipe.training.backbone, recipe.image.size, recipe.seed, ("vector",))
        if weights is not None:
            self.backbone.load(weights)
        with seeded(recipe.seed):
            self.head = nn.Linear(self.backbone.vector_width, classes)
        self.pixels = Normaliser(recipe.image.mean, recipe.image.std)

    def logits(self, image: Tensor) -> Tensor:
        """Float32 (n, classes) of uint8 images (n, h, w, 3)."""
        return self.head(self.backbone(self.pixels(image)).vector).float()

    def forward(self, batch: dict[str, Tensor], only: str = OBJECTIVE) -> dict[str, Outcome]:
        """Cross-entropy and accuracy; samples of weight 0 or without a label count for nothing. There is one objective."""
        n = len(batch["weight"])
        rows = ((batch["weight"] > 0) & (batch["class"] >= 0)).nonzero().flatten()
        image, label = batch["image"][rows], batch["class"][rows]
        logits = self.logits(image)
        with torch.no_grad():
            right = (logits.argmax(1) == label).float().sum()
            count = torch.tensor(float(len(rows)), device=label.device)
        outcome = Outcome(F.cross_entropy(logits, label, reduction="none"), right, count / logits.shape[1], count)
        return {only: outcome.among(rows, n)}
