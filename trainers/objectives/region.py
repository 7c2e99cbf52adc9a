"""Objective of region labels: predict a mask and a cell; binary and plain cross-entropy, intersection over union."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.labels import Region
from pipeline.tasks import Task
from trainers.networks.backbones import Backbone
from trainers.networks.inputs import Normaliser
from trainers.objectives.base import Objective, Outcome
from trainers.objectives.decoder import Decoder


class RegionObjective(Objective):
    """Sum of the binary cross-entropy of the mask and the cross-entropy of the cell.

    A decoder gives both: one channel is the logit of each pixel to lie in the region; the mean of another over a cell is that
    cell's logit. The metric is the masks' intersection over union; a further one, `cells`, is the share of samples whose cell is
    predicted correctly. The trivial answer is a mask of the whole image.
    """

    name = "region"
    kind = Region
    needs = ("map",)
    metric = "iou"
    higher_is_better = True

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        kind = task.label_kind()
        assert isinstance(kind, Region)
        self.grid, self.norm = kind.grid, task.input_norm
        self.decoder = Decoder(backbone.map_width, backbone.map_size, 2, image_size)

    def answer(self, backbone: Backbone, batch: dict[str, Tensor], name: str, pixels: Normaliser) -> Tensor:
        """Logits of pixels and of cells, float (n, 2, h, w), for `<task>.input`, uint8 (n, h, w, c)."""
        given = batch[f"{name}.input"]
        channels: Tensor = self.decoder(backbone(pixels(given, self.norm)).map, tuple(batch[f"{name}.mask"].shape[1:]))
        return channels

    def judge(self, answer: Tensor, batch: dict[str, Tensor], name: str) -> Outcome:
        """Compare both channels with the mask `<task>.mask`, uint8 (n, h, w), and the cell `<task>.label`, int64 (n,)."""
        from torchmetrics.functional.segmentation import mean_iou

        label, weight, mask = batch[f"{name}.label"], batch["weight"], batch[f"{name}.mask"].unsqueeze(1)
        inside, likely = answer[:, :1], F.adaptive_avg_pool2d(answer[:, 1:], self.grid).flatten(1)
        blurred = F.binary_cross_entropy_with_logits(inside, mask.float(), reduction="none").mean((1, 2, 3))
        with torch.no_grad():
            predicted = torch.cat([inside > 0, torch.zeros_like(inside, dtype=torch.bool)], 1).long()
            target = torch.cat([mask, torch.zeros_like(mask)], 1).long()
            overlap, everything = (
                mean_iou(x, target, num_classes=2, per_class=True, input_format="one-hot")[:, 0].clamp(min=0)
                for x in (predicted, torch.ones_like(predicted))
            )
            count = weight.sum()
        return Outcome(
            loss=((blurred + F.cross_entropy(likely, label, reduction="none")) * weight).sum(),
            metric=(overlap * weight).sum(),
            trivial=(everything * weight).sum(),
            count=count,
            also={"cells": ((likely.argmax(1) == label).float() * weight).sum()},
        )
