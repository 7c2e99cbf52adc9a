"""SimCLR: each view is told from the views of all other samples by what it has in common with its own."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pipeline.tasks import Task
from trainers.networks.backbones import Backbone
from trainers.objectives.base import Objective
from trainers.objectives.views import MINUS, Compared, Shared, ViewObjective, each, mlp, parameters_of


class SimclrObjective(ViewObjective):
    """Normalised temperature-scaled cross-entropy (Chen et al. 2020, equation 1) over the batch of all ranks.

    Of more than two views a sample has several right answers, whose mean counts (Khosla et al. 2020, equation 2). The paper's
    projector has a hidden layer as wide as the features, 2048 for ResNet-50, and 128 outputs; its temperature is 0.1, for
    CIFAR-10 0.5.
    """

    name = "simclr"

    class Parameters(Objective.Parameters):
        """See the fields."""

        temperature: float = Field(0.1, gt=0, description="What cosines are divided by.")
        hidden: int | None = Field(None, ge=1, description="Width of the projector's hidden layer; else that of the features.")
        width: int = Field(128, ge=2, description="Numbers that a view is compared by.")

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        own = self.Parameters(**parameters_of(task))
        self.temperature = own.temperature
        self.projector = mlp([backbone.vector_width, own.hidden or backbone.vector_width, own.width])

    def compare(self, features: Tensor, shared: Shared) -> Compared:
        """As in `ViewObjective`."""
        z = F.normalize(each(self.projector, features), dim=2)
        return Compared(nt_xent(z, shared, self.temperature), z[:, 0], z[:, 1])


def nt_xent(z: Tensor, shared: Shared, temperature: float) -> Tensor:
    """The loss of this rank's samples, summed, each the mean over its views; of normalised float (n, v, d)."""
    n, v, _ = z.shape
    everyone = shared.rows.gather(z)
    logits = z.flatten(0, 1) @ everyone.flatten(0, 1).T / temperature  # (n * v, total * v)
    own = (shared.places() * v).repeat_interleave(v).unsqueeze(1) + torch.arange(v, device=z.device)  # of the same sample
    itself = own.gather(1, torch.arange(v, device=z.device).repeat(n).unsqueeze(1))
    alike = (logits.gather(1, own).sum(1) - logits.gather(1, itself).squeeze(1)) / (v - 1)
    counts = (shared.weights > 0).repeat_interleave(v).expand_as(logits).scatter(1, itself, value=False)
    losses = logits.masked_fill(~counts, MINUS).logsumexp(1) - alike
    return (losses.view(n, v).mean(1) * shared.weight).sum()
