"""SimCLR: features of two views of a photo are similar, and unlike those of all other photos' views."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pipeline.tasks import Task
from trainers.networks.backbones import Backbone
from trainers.objectives.base import Objective
from trainers.objectives.views import MINUS, Compared, Shared, ViewObjective, mlp, parameters_of


class SimclrObjective(ViewObjective):
    """Normalised temperature-scaled cross-entropy (Chen et al. 2020, equation 1) over the batch of all ranks.

    With more than two views each view has several positives, over which the loss is averaged (Khosla et al. 2020, equation 2).
    The paper's projector has a hidden layer as wide as the features, 2048 for ResNet-50, and 128 outputs; its temperature is 0.1,
    and 0.5 for CIFAR-10.
    """

    name = "simclr"

    class Parameters(Objective.Parameters):
        """See the fields."""

        temperature: float = Field(0.1, gt=0, description="Number by which cosines are divided.")
        hidden: int | None = Field(
            None, ge=1, description="Width of the projector's hidden layer; else the width of the features."
        )
        width: int = Field(128, ge=2, description="Width of the vectors in which views are compared.")

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        settings = self.Parameters(**parameters_of(task))
        self.temperature = settings.temperature
        self.projector = mlp([backbone.vector_width, settings.hidden or backbone.vector_width, settings.width])

    def compare(self, features: Tensor, shared: Shared) -> Compared:
        """As in `ViewObjective`."""
        z = F.normalize(self.per_view(self.projector, features), dim=2)
        return Compared(nt_xent(z, shared, self.temperature), z[:, 0], z[:, 1])


def nt_xent(z: Tensor, shared: Shared, temperature: float) -> Tensor:
    """The sum over this rank's samples of the mean loss of their views, which are normalised float (n, v, d)."""
    n, v, _ = z.shape
    gathered = shared.rows.gather(z)
    logits = z.flatten(0, 1) @ gathered.flatten(0, 1).T / temperature  # (n * v, total * v)
    own = (shared.places() * v).repeat_interleave(v).unsqueeze(1) + torch.arange(v, device=z.device)  # columns of the same sample
    itself = own.gather(1, torch.arange(v, device=z.device).repeat(n).unsqueeze(1))
    alike = (logits.gather(1, own).sum(1) - logits.gather(1, itself).squeeze(1)) / (v - 1)
    counts = (shared.weights > 0).repeat_interleave(v).expand_as(logits).scatter(1, itself, value=False)
    losses = logits.masked_fill(~counts, MINUS).logsumexp(1) - alike
    return (losses.view(n, v).mean(1) * shared.weight).sum()
