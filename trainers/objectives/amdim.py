"""AMDIM: match the vector of one view, and places of its map, with the places of another view's map."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from pipeline.tasks import Task
from trainers.networks.backbones import Backbone
from trainers.objectives.base import Objective
from trainers.objectives.dim import LocalObjective, local_nce, scores_of
from trainers.objectives.views import Compared, Shared, parameters_of


class AmdimObjective(LocalObjective):
    """InfoNCE between views (Bachman et al. 2019, equations 4 and 5); scores are softly clipped and their squares penalised.

    The paper's encoder has maps of 5 and of 7 places a side, and compares the vector with both maps, and the map of 5 with
    itself. Here the backbone's vector is compared with its last map, and so is one place of that map, another one at each step.
    """

    name: ClassVar[str] = "amdim"

    class Parameters(Objective.Parameters):
        """See the fields."""

        clip: float = Field(20.0, gt=0, description="Greatest absolute value of a score.")
        penalty: float = Field(0.05, ge=0, description="Weight of the mean squared score.")
        hidden: int = Field(512, ge=1, description="Width of the heads' hidden layer.")
        width: int = Field(256, ge=2, description="Width of the vectors in which vectors and places are compared.")

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        self.settings = self.Parameters(**parameters_of(task))
        self.make_heads(backbone, self.settings.hidden, self.settings.width)

    def compare(self, features: Tensor, shared: Shared) -> Compared:
        """As in `ViewObjective`."""
        gathered = shared.rows.gather(features[:, :, 1:])
        place = 1 + self.step % gathered.shape[2]
        losses = []
        for one, other in ((0, 1), (1, 0)):
            for anchor in (features[:, one, 0], features[:, one, place]):
                scores = scores_of(anchor, gathered[:, other])
                counted = shared.weights.view(1, -1, 1)
                squares = (scores.square() * counted).mean(2).sum(1) / shared.count()
                losses.append(
                    local_nce(self.settings.clip * torch.tanh(scores / self.settings.clip), shared)
                    + self.settings.penalty * squares
                )
        loss = (torch.stack(losses).mean(0) * shared.weight).sum()
        return Compared(loss, features[:, 0, 0], features[:, 1, 0])
