"""An angle: its sine and cosine as two numbers, squared error, degrees."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.labels import Direction
from pipeline.tasks import Task
from trainers.networks.backbones import Backbone
from trainers.objectives.base import Outcome
from trainers.objectives.head import VectorObjective


class DirectionObjective(VectorObjective):
    """Squared distance of two numbers from the unit vector of the angle.

    The metric is the mean absolute error of the angle that they point to, in degrees; any guess is 90 off on average.
    """

    name = "direction"
    kind = Direction
    metric = "degrees"
    higher_is_better = False

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size, 2)

    def judge(self, answer: Tensor, batch: dict[str, Tensor], name: str) -> Outcome:
        """Judge numbers (n, 2) against the sine and cosine of the angle, `<task>.label`, float32 (n, 2)."""
        label, weight = batch[f"{name}.label"], batch["weight"]
        with torch.no_grad():
            sine = answer[:, 0] * label[:, 1] - answer[:, 1] * label[:, 0]
            apart = torch.atan2(sine, (answer * label).sum(1)).abs().rad2deg()
            count = weight.sum()
        return Outcome(
            loss=((answer - label).square().sum(1) * weight).sum(),
            metric=(apart * weight).sum(),
            trivial=90 * count,
            count=count,
        )
