"""SwAV: one view predicts to which prototypes another is assigned, where assignments spread the batch evenly over them."""

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
from trainers.objectives.views import MINUS, Compared, Shared, ViewObjective, each, mlp, parameters_of


class SwavObjective(ViewObjective):
    """Cross-entropy of swapped assignments (Caron et al. 2020, equations 1 to 3): each large view's, told by all other views.

    Assignments are balanced over the batch of all ranks, and over a queue of earlier features where the batch is small. The
    paper: a hidden layer of 2048, 3,000 prototypes that are fixed for the first epoch, at a batch of 256 a queue of 3,840 from
    epoch 15 on. Beside the metric `assignment_entropy`: of the mean assignment, as a share of the greatest possible.
    """

    name: ClassVar[str] = "swav"

    class Parameters(Objective.Parameters):
        """See the fields."""

        prototypes: int = Field(512, ge=2, description="Number of prototypes.")
        temperature: float = Field(0.1, gt=0, description="What the scores of a prediction are divided by.")
        epsilon: float = Field(0.05, gt=0, description="What the scores of an assignment are divided by.")
        rounds: int = Field(3, ge=1, description="Rounds of balancing (Sinkhorn and Knopp).")
        frozen: float = Field(0.01, ge=0, le=1, description="Share of the run over which the prototypes stay as they are.")
        queue: int = Field(0, ge=0, description="Earlier samples that the balance takes in; 0: none.")
        queue_from: float = Field(0.1, ge=0, le=1, description="Share of the run from which on the queue is used.")
        hidden: int = Field(1024, ge=1, description="Width of the projector's hidden layer.")
        width: int = Field(128, ge=2, description="Numbers that a view is compared by.")

    queue: Tensor
    filled: Tensor
    _waiting: Tensor | None

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        self.own = own = self.Parameters(**parameters_of(task))
        self.projector = mlp([backbone.vector_width, own.hidden, own.width])
        self.prototypes = nn.Linear(own.width, own.prototypes, bias=False)
        self._waiting = None
        if own.queue:
            self.register_buffer("queue", torch.zeros(own.queue, self.views, own.width))
            self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def begin_step(self, step: int, steps: int) -> None:
        """As in `Objective`; prototypes have length 1 at the start of each step."""
        super().begin_step(step, steps)
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    def before_update(self) -> None:
        """As in `Objective`; at first the prototypes stay as they are."""
        if self.step < self.own.frozen * self.steps:
            self.prototypes.weight.grad = None

    def compare(self, features: Tensor, shared: Shared) -> Compared:
        """As in `ViewObjective`."""
        z = F.normalize(each(self.projector, features), dim=2)
        scores = self.prototypes(z)
        told = (scores / self.own.temperature).log_softmax(2)
        everyone = shared.rows.gather(z[:, : self.views].detach())
        with torch.no_grad():
            assigned = self._assign(everyone, shared)  # (n, k, prototypes)
            mean = (assigned * shared.weight.view(-1, 1, 1)).sum((0, 1))
            mean = shared.rows.sum(mean)
            entropy = torch.special.entr(mean / mean.sum().clamp(min=1e-12)).sum() / math.log(len(mean))
        if self.training and self.own.queue:
            self._waiting = shared.by_id(everyone)
        right = assigned @ told.transpose(1, 2)  # (n, k, v)
        losses = -(right.sum((1, 2)) - right.diagonal(dim1=1, dim2=2).sum(1)) / (self.views * (z.shape[1] - 1))
        return Compared((losses * shared.weight).sum(), z[:, 0], z[:, 1], {"assignment_entropy": entropy})

    def _assign(self, everyone: Tensor, shared: Shared) -> Tensor:
        """The assignments of this rank's large views, (n, k, prototypes), of the vectors of all ranks, (total, k, width)."""
        weights = shared.weights
        if self.own.queue and self.step >= self.own.queue_from * self.steps:
            everyone = torch.cat([everyone, self.queue])
            weights = torch.cat([weights, (torch.arange(self.own.queue, device=weights.device) < self.filled).float()])
        found = [sinkhorn(self.prototypes(view), weights, self.own.epsilon, self.own.rounds) for view in everyone.unbind(1)]
        return shared.rows.own(torch.stack(found, 1))

    @torch.no_grad()
    def after_update(self, backbone: Backbone) -> None:
        """As in `Objective`; the batch enters the queue."""
        if self._waiting is not None:
            self.filled.copy_((self.filled + len(self._waiting)).clamp(max=self.own.queue))
            self.queue.copy_(torch.cat([self._waiting, self.queue])[: self.own.queue])
            self._waiting = None


def sinkhorn(scores: Tensor, weights: Tensor, epsilon: float, rounds: int) -> Tensor:
    """Assignments that sum to 1 over prototypes and are even over samples, float32 (n, prototypes).

    Computed in logarithms, so that no scores are too far apart for it.

    Args:
        scores: float32 (n, prototypes).
        weights: of the samples, (n,), 0 or 1; those of weight 0 are assigned to nothing.
        epsilon: what scores are divided by.
        rounds: of normalising prototypes, then samples.
    """
    left_out = weights.unsqueeze(1) == 0
    logs = scores.float() / epsilon
    for _ in range(rounds):
        logs = logs - logs.masked_fill(left_out, MINUS).logsumexp(0, keepdim=True)
        logs = logs - logs.logsumexp(1, keepdim=True)
    return logs.exp().masked_fill(left_out, 0)
