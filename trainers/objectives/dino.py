"""DINO: predict from one view the output distribution, sharpened and centred, of a momentum network for another view."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.tasks import Task
from trainers.networks.backbones import Backbone
from trainers.objectives.base import Objective
from trainers.objectives.views import Compared, MomentumObjective, Shared, mean_products, parameters_of


class DinoHead(nn.Module):
    """Three layers to a normalised vector, float (n, width), and its cosines with the outputs' vectors, float (n, outputs).

    Args:
        features: width of the input.
        hidden: width of the hidden layers.
        width: width of the vector.
        outputs: number of outputs.
    """

    def __init__(self, features: int, hidden: int, width: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, width)
        )
        self.last = nn.Linear(width, outputs, bias=False)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Cosines, float (n, outputs), of features (n, features)."""
        return self.cosines(self.vector(x))

    def cosines(self, vectors: Tensor) -> Tensor:
        """Cosines of normalised vectors, (..., width), with the outputs' vectors, (..., outputs)."""
        return F.linear(vectors, F.normalize(self.last.weight, dim=1))

    def vector(self, x: Tensor) -> Tensor:
        """The normalised vector before the last layer."""
        return F.normalize(self.layers(x), dim=1)


class DinoObjective(MomentumObjective):
    """Cross-entropy between the momentum network's outputs for a large view and the network's outputs for every other view.

    It follows Caron et al. 2021, equation 3 and algorithm 1. The centre is the moving mean of the momentum network's outputs over
    the batch of all ranks. The paper has hidden layers of 2048 and 65,536 outputs, fixes the last layer for the first epoch,
    clips gradients at 3 (`training.optimizer.clip`), and raises weight decay from 0.04 to 0.4 (`weight_decay` and
    `weight_decay_end` of the optimizer). A further metric, `assignment_entropy`, is the entropy of the momentum network's mean
    output, as a share of the greatest possible.
    """

    name: ClassVar[str] = "dino"

    class Parameters(Objective.Parameters):
        """See the fields."""

        outputs: int = Field(4096, ge=2, description="Number of outputs.")
        temperature: float = Field(0.1, gt=0, description="Number by which the network's outputs are divided.")
        teacher_temperature: float = Field(0.04, gt=0, description="Number by which the momentum network's outputs are divided.")
        first_temperature: float | None = Field(
            None,
            gt=0,
            description="The same at the start of the run, if it warms up; it then goes to `teacher_temperature` linearly.",
        )
        warmup: float = Field(
            0.3, gt=0, le=1, description="Share of the run over which the momentum network's temperature warms up."
        )
        momentum: float = Field(
            0.996, ge=0, le=1, description="Momentum at the start of the run; it rises to 1 along half a cosine."
        )
        centre: float = Field(0.9, ge=0, lt=1, description="Momentum of the centre.")
        frozen: float = Field(0.01, ge=0, le=1, description="Share of the run, from its start, in which the last layer is fixed.")
        hidden: int = Field(1024, ge=1, description="Width of the head's hidden layers.")
        width: int = Field(256, ge=2, description="Width of the vector before the last layer.")

    centre: Tensor
    _mean: Tensor | None

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        self.settings = settings = self.Parameters(**parameters_of(task))
        self.schedule = (settings.momentum, 1.0)
        self.head = DinoHead(backbone.vector_width, settings.hidden, settings.width, settings.outputs)
        self.make_momentum_network(backbone, "head")
        self.register_buffer("centre", torch.zeros(settings.outputs))
        self._mean = None

    def before_update(self) -> None:
        """As in `Objective`; in the first steps the last layer is fixed."""
        if self.step < self.settings.frozen * self.steps:
            self.head.last.weight.grad = None

    def compare(self, features: Tensor, shared: Shared) -> Compared:
        """As in `ViewObjective`."""
        online, target = self.split(features)
        vectors = self.per_view(self.head.vector, online)
        predicted = (self.head.cosines(vectors) / self.settings.temperature).log_softmax(2)
        with torch.no_grad():
            outputs = self.per_view(self.target_heads["head"], target)
            targets = ((outputs - self.centre) / self._teacher_temperature()).softmax(2)
            counted = shared.weight.view(-1, 1, 1)
            sums = shared.rows.sum(torch.stack([(x * counted).sum((0, 1)) for x in (outputs, targets)]))
            mean, share = sums / (shared.count() * self.views)
            if self.training:
                self._mean = mean
            entropy = torch.special.entr(share).sum() / math.log(len(share))
        losses = -mean_products(predicted, targets)
        return Compared((losses * shared.weight).sum(), vectors[:, 0], vectors[:, 1], {"assignment_entropy": entropy})

    def _teacher_temperature(self) -> float:
        first, last = self.settings.first_temperature, self.settings.teacher_temperature
        share = self.step / (self.settings.warmup * self.steps)
        return last if first is None or share >= 1 else first + (last - first) * share

    @torch.no_grad()
    def after_update(self, backbone: Backbone) -> None:
        """As in `Objective`; updates the centre, too."""
        super().after_update(backbone)
        if self._mean is not None:
            self.centre.lerp_(self._mean, 1 - self.settings.centre)
            self._mean = None
