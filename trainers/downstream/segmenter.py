"""A backbone with a head of torchvision that names the class of each pixel, for fine-tuning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

from pipeline.recipe.schema import Recipe
from pipeline.targets.masks import IGNORED
from trainers.downstream.problem import TunedNetwork
from trainers.networks.backbones import Backbone, build_backbone, seeded
from trainers.networks.inputs import Normaliser
from trainers.objectives import Outcome

OBJECTIVE = "mask"
_HEADS = {"fcn": FCNHead, "deeplab": DeepLabHead}


class Segmenter(TunedNetwork):
    """Predicts the column `mask` from the column `image`; nothing is frozen.

    The head (FCN: Long et al., Fully convolutional networks for semantic segmentation, CVPR 2015; DeepLab v3: Chen et al.,
    Rethinking atrous convolution for semantic image segmentation, 2017) reads the backbone's last map, and its scores are
    enlarged to the image bilinearly.

    Args: as of `DownstreamProblem.build`.
    """

    def __init__(self, recipe: Recipe, classes: int, weights: dict[str, Any] | None) -> None:
        super().__init__()
        self.backbone = build_backbone(recipe.training.backbone, recipe.image.size, recipe.seed, ("map",))
        self.untrained = [] if weights is None else self.backbone.load(weights)
        with seeded(recipe.seed):
            self.head = _HEADS[recipe.downstream.head if recipe.downstream else "fcn"](self.backbone.map_width, classes)
        self.pixels = Normaliser(recipe.image.mean, recipe.image.std)

    def normalising(self) -> nn.Module:
        return _MapAndHead(self.backbone, self.head)

    def logits(self, image: Tensor) -> Tensor:
        """Float32 (n, classes, h, w) of uint8 images (n, h, w, 3)."""
        scores = self.head(self.backbone(self.pixels(image)).map)
        return F.interpolate(scores.float(), image.shape[1:3], mode="bilinear", align_corners=False)

    def forward(self, batch: dict[str, Tensor], only: str = OBJECTIVE) -> dict[str, Outcome]:
        """Cross-entropy and accuracy of pixels, each a mean over an image's pixels that count, as the only objective.

        An image of weight 0, or without a pixel that counts, does not count. The trivial answer names the class everywhere that
        most pixels of the batch have.
        """
        logits, mask = self.logits(batch["image"]), batch["mask"].long()
        counted = mask != IGNORED
        share = counted.float() / counted.sum((1, 2), keepdim=True).clamp_min(1)  # of each pixel in its image
        weight = batch["weight"] * counted.any(2).any(1)
        losses = F.cross_entropy(logits, mask, ignore_index=IGNORED, reduction="none")
        with torch.no_grad():
            right = (weight * (share * (logits.argmax(1) == mask)).sum((1, 2))).sum()
            most = torch.bincount(mask[counted], minlength=1).argmax()
            trivial = (weight * (share * (mask == most)).sum((1, 2))).sum()
        return {only: Outcome((weight * (share * losses).sum((1, 2))).sum(), right, trivial, weight.sum())}


class _MapAndHead(nn.Module):
    """From normalised images to the head's scores."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.train(backbone.training)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.backbone(x).map)
        return scores
