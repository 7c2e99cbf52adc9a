"""BYOL: from the features of one view, predict the momentum network's features of another."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.tasks import Task
from trainers.networks.backbones import Backbone
from trainers.objectives.base import Objective
from trainers.objectives.views import Compared, MomentumObjective, Shared, mean_products, mlp, parameters_of


class ByolObjective(MomentumObjective):
    """Squared distance between normalised vectors (Grill et al. 2020, equation 2), for all pairs of a view and another large one.

    The paper's projector and predictor have hidden layers of 4096 and 256 outputs. Only the predictor and the slow momentum
    network prevent a collapse, in which all photos get the same features.
    """

    name: ClassVar[str] = "byol"
    needs_whole_batch: ClassVar[bool] = False

    class Parameters(Objective.Parameters):
        """See the fields."""

        momentum: float = Field(
            0.996, ge=0, le=1, description="Momentum at the start of the run; it rises to 1 along half a cosine."
        )
        hidden: int = Field(1024, ge=1, description="Width of the projector's hidden layer.")
        width: int = Field(256, ge=2, description="Width of the vectors in which views are compared.")
        predictor: int = Field(
            1024, ge=0, description="Width of the predictor's hidden layer; 0: no predictor, and the run collapses."
        )

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        settings = self.Parameters(**parameters_of(task))
        self.schedule = (settings.momentum, 1.0)
        self.projector = mlp([backbone.vector_width, settings.hidden, settings.width])
        self.predictor = mlp([settings.width, settings.predictor, settings.width]) if settings.predictor else nn.Identity()
        self.make_momentum_network(backbone, "projector")

    def compare(self, features: Tensor, shared: Shared) -> Compared:
        """As in `ViewObjective`."""
        online, target = self.split(features)
        projected = self.per_view(self.projector, online)
        predicted = F.normalize(self.per_view(self.predictor, projected), dim=2)
        targets = F.normalize(self.per_view(self.target_heads["projector"], target), dim=2)
        losses = 2 - 2 * mean_products(predicted, targets)
        return Compared((losses * shared.weight).sum(), projected[:, 0], projected[:, 1])
