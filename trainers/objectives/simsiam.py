"""SimSiam: one view's prediction of the other, whose side is given no gradient; nothing else."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pipeline.tasks import Task
from trainers.networks.backbones import Backbone
from trainers.objectives.base import Objective
from trainers.objectives.byol import across
from trainers.objectives.views import Compared, Shared, ViewObjective, each, mlp, parameters_of


class SimsiamObjective(ViewObjective):
    """One minus the cosine of a predicted and of a detached vector (Chen and He 2021, equation 2), over all pairs of views.

    The paper's projector has three layers of 2048 and its predictor a hidden layer of 512, whose learning rate stays at its peak;
    here it falls as all do.
    """

    name: ClassVar[str] = "simsiam"

    class Parameters(Objective.Parameters):
        """See the fields."""

        width: int = Field(1024, ge=2, description="Width of the projector's three layers.")
        predictor: int = Field(256, ge=1, description="Width of the predictor's hidden layer.")

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        own = self.Parameters(**parameters_of(task))
        self.projector = mlp([backbone.vector_width, own.width, own.width, own.width], last_norm=True, affine=False)
        self.predictor = mlp([own.width, own.predictor, own.width])

    def compare(self, features: Tensor, shared: Shared) -> Compared:
        """As in `ViewObjective`."""
        projected = each(self.projector, features)
        told, wanted = F.normalize(each(self.predictor, projected), dim=2), F.normalize(projected.detach(), dim=2)
        losses = 1 - across(told, wanted[:, : self.views])
        return Compared((losses * shared.weight).sum(), projected[:, 0], projected[:, 1])
