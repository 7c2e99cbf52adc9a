"""Objective of angle labels: predict sine and cosine, squared error, mean error in degrees."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.labels import Direction
from pipeline.tasks import Task
from trainers.networks.backbones import Backbone
from trainers.objectives.base import Outcome
from trainers.objectives.head import VectorObjective


class DirectionObjective(VectorObjective):
    """Squared distance between two predicted numbers and the unit vector of the angle.

    The metric is the mean absolute error, in degrees, of the angle in which the numbers point; a guess is off by 90 on average.
    """

    name = "direction"
    kind = Direction
    metric = "degrees"
    higher_is_better = False

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size, 2)

    def judge(self, answer: Tensor, batch: dict[str, Tensor], name: str) -> Outcome:
        """Compare numbers (n, 2) with the sine and cosine of the angle, `<task>.label`, float32 (n, 2)."""
        label, weight = batch[f"{name}.label"], batch["weight"]
        with torch.no_grad():
            sine = answer[:, 0] * label[:, 1] - answer[:, 1] * label[:, 0]
            distance = torch.atan2(sine, (answer * label).sum(1)).abs().rad2deg()
            count = weight.sum()
        return Outcome(
            loss=((answer - label).square().sum(1) * weight).sum(),
            metric=(distance * weight).sum(),
            trivial=90 * count,
            count=count,
        )
