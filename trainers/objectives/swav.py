"""SwAV: predict from one view the cluster of another; clusters are assigned evenly over the batch."""

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
from trainers.objectives.views import MINUS, Compared, Shared, ViewObjective, enqueue, mean_products, mlp, parameters_of


class SwavObjective(ViewObjective):
    """Cross-entropy of swapped assignments (Caron et al. 2020, equations 1 to 3): all other views predict each large view's.

    Assignments to prototypes are balanced over the batch of all ranks, and over a queue of earlier features if there is one, for
    small batches. The paper has a hidden layer of 2048 and 3,000 prototypes, which are fixed for the first epoch; at a batch of
    256 a queue of 3,840 from epoch 15 on. A further metric, `assignment_entropy`, is the entropy of the mean assignment, as a
    share of the greatest possible.
    """

    name: ClassVar[str] = "swav"

    class Parameters(Objective.Parameters):
        """See the fields."""

        prototypes: int = Field(512, ge=2, description="Number of prototypes.")
        temperature: float = Field(0.1, gt=0, description="Number by which the scores of a prediction are divided.")
        epsilon: float = Field(0.05, gt=0, description="Number by which the scores of an assignment are divided.")
        rounds: int = Field(3, ge=1, description="Rounds of balancing (Sinkhorn and Knopp).")
        frozen: float = Field(
            0.01, ge=0, le=1, description="Share of the run, from its start, in which the prototypes are fixed."
        )
        queue: int = Field(0, ge=0, description="Number of earlier samples over which assignments are balanced, too; 0: none.")
        queue_from: float = Field(0.1, ge=0, le=1, description="Share of the run after which the queue is used.")
        hidden: int = Field(1024, ge=1, description="Width of the projector's hidden layer.")
        width: int = Field(128, ge=2, description="Width of the vectors in which views are compared.")

    queue: Tensor
    filled: Tensor
    _waiting: Tensor | None

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        self.settings = settings = self.Parameters(**parameters_of(task))
        self.projector = mlp([backbone.vector_width, settings.hidden, settings.width])
        self.prototypes = nn.Linear(settings.width, settings.prototypes, bias=False)
        self._waiting = None
        if settings.queue:
            self.register_buffer("queue", torch.zeros(settings.queue, self.views, settings.width))
            self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def begin_step(self, step: int, steps: int) -> None:
        """As in `Objective`; scales the prototypes to length 1, too."""
        super().begin_step(step, steps)
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def before_update(self) -> None:
        """As in `Objective`; in the first steps the prototypes are fixed."""
        if self.step < self.settings.frozen * self.steps:
            self.prototypes.weight.grad = None

    def compare(self, features: Tensor, shared: Shared) -> Compared:
        """As in `ViewObjective`."""
        z = F.normalize(self.per_view(self.projector, features), dim=2)
        scores = self.prototypes(z)
        predicted = (scores / self.settings.temperature).log_softmax(2)
        gathered = shared.rows.gather(z[:, : self.views].detach())
        with torch.no_grad():
            assigned = self._assign(gathered, shared)  # (n, k, prototypes)
            mean = (assigned * shared.weight.view(-1, 1, 1)).sum((0, 1))
            mean = shared.rows.sum(mean)
            entropy = torch.special.entr(mean / mean.sum().clamp(min=1e-12)).sum() / math.log(len(mean))
        if self.training and self.settings.queue:
            self._waiting = shared.by_id(gathered)
        losses = -mean_products(predicted, assigned)
        return Compared((losses * shared.weight).sum(), z[:, 0], z[:, 1], {"assignment_entropy": entropy})

    def _assign(self, gathered: Tensor, shared: Shared) -> Tensor:
        """Assignments of this rank's large views, (n, k, prototypes), given the vectors of all ranks, (total, k, width)."""
        weights = shared.weights
        if self.settings.queue and self.step >= self.settings.queue_from * self.steps:
            gathered = torch.cat([gathered, self.queue])
            weights = torch.cat([weights, (torch.arange(self.settings.queue, device=weights.device) < self.filled).float()])
        found = [
            sinkhorn(self.prototypes(view), weights, self.settings.epsilon, self.settings.rounds) for view in gathered.unbind(1)
        ]
        return shared.rows.own(torch.stack(found, 1))

    @torch.no_grad()
    def after_update(self, backbone: Backbone) -> None:
        """As in `Objective`; adds the batch to the queue, too."""
        if self._waiting is not None:
            enqueue(self.queue, self.filled, self._waiting)
            self._waiting = None


def sinkhorn(scores: Tensor, weights: Tensor, epsilon: float, rounds: int) -> Tensor:
    """Compute assignments, float32 (n, prototypes), that sum to 1 over prototypes and use all prototypes evenly.

    The computation is in logarithms, so that scores may lie any distance apart.

    Args:
        scores: float32 (n, prototypes).
        weights: weights of the samples, (n,), 0 or 1; samples of weight 0 have assignments of 0.
        epsilon: number by which scores are divided.
        rounds: how many times prototypes and then samples are normalised.
    """
    left_out = weights.unsqueeze(1) == 0
    logs = scores.float() / epsilon
    for _ in range(rounds):
        logs = logs - logs.masked_fill(left_out, MINUS).logsumexp(0, keepdim=True)
        logs = logs - logs.logsumexp(1, keepdim=True)
    return logs.exp().masked_fill(left_out, 0)
