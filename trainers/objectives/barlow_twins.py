"""Barlow Twins: over the batch, each feature of one view correlates with the same feature of the other and with no other one."""

from __future__ import annotations

from itertools import combinations
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from pipeline.tasks import Task
from trainers.networks.backbones import Backbone
from trainers.objectives.base import Objective
from trainers.objectives.views import Compared, Shared, ViewObjective, mlp, parameters_of


class BarlowTwinsObjective(ViewObjective):
    """Squared distance of the views' cross-correlation from the identity (Zbontar et al. 2021, equation 1).

    The cross-correlation is computed over the batch of all ranks. The paper's projector has three layers of 8192.
    """

    name: ClassVar[str] = "barlow_twins"

    class Parameters(Objective.Parameters):
        """See the fields."""

        redundancy: float = Field(0.0051, ge=0, description="Weight of the correlations that should be 0.")
        width: int = Field(1024, ge=2, description="Width of the projector's three layers.")

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        settings = self.Parameters(**parameters_of(task))
        self.redundancy = settings.redundancy
        self.projector = mlp([backbone.vector_width, settings.width, settings.width, settings.width])

    def compare(self, features: Tensor, shared: Shared) -> Compared:
        """As in `ViewObjective`; the loss of the whole batch counts once for each sample."""
        z = self.per_view(self.projector, features)
        n, centred = shared.count(), shared.centred(shared.rows.gather(z))
        standardised = centred * ((centred.square().sum(0) / n) + 1e-5).rsqrt()
        losses = []
        for i, j in combinations(range(z.shape[1]), 2):
            correlation = standardised[:, i].T @ standardised[:, j] / n
            on, all_squares = correlation.diagonal(), correlation.square().sum()
            losses.append((on - 1).square().sum() + self.redundancy * (all_squares - on.square().sum()))
        loss = torch.stack(losses).mean() * shared.weight.sum()
        return Compared(loss, z[:, 0], z[:, 1])
