"""BYOL: what the network makes of one view predicts what its momentum network makes of another."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.tasks import Task
from trainers.networks.backbones import Backbone
from trainers.objectives.base import Objective
from trainers.objectives.views import Compared, MomentumObjective, Shared, each, mlp, parameters_of


class ByolObjective(MomentumObjective):
    """Squared distance of normalised vectors (Grill et al. 2020, equation 2), over all ordered pairs of a view and a large one.

    The paper's projector and predictor have hidden layers of 4096 and 256 outputs. Nothing but the predictor and the slow
    momentum network keeps all photos from the same answer.
    """

    name: ClassVar[str] = "byol"

    class Parameters(Objective.Parameters):
        """See the fields."""

        momentum: float = Field(0.996, ge=0, le=1, description="Of the momentum network at the start; it goes to 1 by a cosine.")
        hidden: int = Field(1024, ge=1, description="Width of the projector's hidden layer.")
        width: int = Field(256, ge=2, description="Numbers that a view is compared by.")
        predictor: int = Field(1024, ge=0, description="Width of the predictor's hidden layer; 0: none, and the run collapses.")

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        own = self.Parameters(**parameters_of(task))
        self.schedule = (own.momentum, 1.0)
        self.projector = mlp([backbone.vector_width, own.hidden, own.width])
        self.predictor = mlp([own.width, own.predictor, own.width]) if own.predictor else nn.Identity()
        self.keep_copy(backbone, "projector")

    def compare(self, features: Tensor, shared: Shared) -> Compared:
        """As in `ViewObjective`."""
        online, target = self.split(features)
        projected = each(self.projector, online)
        told = F.normalize(each(self.predictor, projected), dim=2)
        wanted = F.normalize(each(self.target_heads["projector"], target), dim=2)
        losses = 2 - 2 * across(told, wanted)
        return Compared((losses * shared.weight).sum(), projected[:, 0], projected[:, 1])


def across(told: Tensor, wanted: Tensor) -> Tensor:
    """Mean cosine, float (n,), of each view with each other large one: of normalised (n, v, d) and (n, k, d)."""
    cosines = told @ wanted.transpose(1, 2)  # (n, v, k)
    v, k = cosines.shape[1:]
    same = cosines.diagonal(dim1=1, dim2=2).sum(1)
    total: Tensor = (cosines.sum((1, 2)) - same) / (v * k - k)
    return total
