"""VICReg: the views of a photo have similar features, each feature varies over the batch, and no two features correlate."""

from __future__ import annotations

from itertools import combinations
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pipeline.tasks import Task
from trainers.networks.backbones import Backbone
from trainers.objectives.base import Objective
from trainers.objectives.views import Compared, Shared, ViewObjective, mlp, parameters_of


class VicregObjective(ViewObjective):
    """Sum of invariance, variance and covariance terms (Bardes et al. 2022, equation 6), over the batch of all ranks.

    The paper's projector has three layers of 8192.
    """

    name: ClassVar[str] = "vicreg"

    class Parameters(Objective.Parameters):
        """See the fields."""

        invariance: float = Field(25.0, ge=0, description="Weight of the squared distance between two views.")
        variance: float = Field(25.0, ge=0, description="Weight of how far standard deviations are below 1.")
        covariance: float = Field(1.0, ge=0, description="Weight of the squared covariances.")
        width: int = Field(1024, ge=2, description="Width of the projector's three layers.")

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        self.settings = self.Parameters(**parameters_of(task))
        width = self.settings.width
        self.projector = mlp([backbone.vector_width, width, width, width])

    def compare(self, features: Tensor, shared: Shared) -> Compared:
        """As in `ViewObjective`; the loss of the whole batch counts once for each sample."""
        z = self.per_view(self.projector, features)
        weights, n = shared.weights.view(-1, 1, 1), shared.count()
        gathered = shared.rows.gather(z)
        centred = shared.centred(gathered)
        dof = (n - 1).clamp(min=1)
        std = (centred.square().sum(0) / dof + 1e-4).sqrt()  # (views, width)
        variance_terms = F.relu(1 - std).mean(1)
        covariances = []
        for view in centred.unbind(1):
            covariance = view.T @ view / dof
            covariances.append((covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[2])
        losses = []
        for i, j in combinations(range(z.shape[1]), 2):
            distance = ((gathered[:, i] - gathered[:, j]).square() * weights[:, 0]).sum() / (n * z.shape[2])
            both = self.settings.variance * (variance_terms[i] + variance_terms[j]) / 2 + self.settings.covariance * (
                covariances[i] + covariances[j]
            )
            losses.append(self.settings.invariance * distance + both)
        loss = torch.stack(losses).mean() * shared.weight.sum()
        return Compared(loss, z[:, 0], z[:, 1])
