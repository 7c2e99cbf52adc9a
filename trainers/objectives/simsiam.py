"""SimSiam: from the features of one view, predict those of the other, which get no gradient."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pipeline.tasks import Task
from trainers.networks.backbones import Backbone
from trainers.objectives.base import Objective
from trainers.objectives.views import Compared, Shared, ViewObjective, mean_products, mlp, parameters_of


class SimsiamObjective(ViewObjective):
    """One minus the cosine of a predicted and a detached vector (Chen and He 2021, equation 2), averaged over all pairs of views.

    The paper's projector has three layers of 2048, and its predictor a hidden layer of 512. The paper keeps the predictor's
    learning rate at its peak; here it falls like that of all other layers.
    """

    name: ClassVar[str] = "simsiam"
    needs_whole_batch: ClassVar[bool] = False

    class Parameters(Objective.Parameters):
        """See the fields."""

        width: int = Field(1024, ge=2, description="Width of the projector's three layers.")
        predictor: int = Field(256, ge=1, description="Width of the predictor's hidden layer.")

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        settings = self.Parameters(**parameters_of(task))
        self.projector = mlp(
            [backbone.vector_width, settings.width, settings.width, settings.width], last_norm=True, affine=False
        )
        self.predictor = mlp([settings.width, settings.predictor, settings.width])

    def compare(self, features: Tensor, shared: Shared) -> Compared:
        """As in `ViewObjective`."""
        projected = self.per_view(self.projector, features)
        predicted, targets = F.normalize(self.per_view(self.predictor, projected), dim=2), F.normalize(projected.detach(), dim=2)
        losses = 1 - mean_products(predicted, targets[:, : self.views])
        return Compared((losses * shared.weight).sum(), projected[:, 0], projected[:, 1])
