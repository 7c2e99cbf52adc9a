"""MoCo: a view's key is found among those of other samples, which a momentum network makes and, in version 2, a queue keeps."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.tasks import Task
from trainers.networks.backbones import Backbone
from trainers.objectives.base import Objective
from trainers.objectives.views import MINUS, Compared, MomentumObjective, Shared, each, info_nce, mlp, parameters_of


class MocoObjective(MomentumObjective):
    """InfoNCE against keys of a momentum network: version 2 (Chen et al. 2020) with a queue, 3 (Chen et al. 2021) without one.

    Version 2 compares a view with the key of another and with the keys of earlier batches, which enter the queue in order of
    their ids, so it does not depend on the number of ranks; it starts empty. Version 3 has a predictor, compares within the
    batch of all ranks, and multiplies the loss by twice the temperature. Both take each view as query and as key in turn; the
    paper's version 2 takes the first as query only, at half the work.

    The paper shuffles samples between GPUs before the keys' batch normalisation, so that its statistics do not tell which key
    belongs to which query. Here nothing is shuffled: with `training.batch_norm: global` statistics are those of the whole batch,
    which tell the less the larger it is. Published for version 2: queue 65,536, for CIFAR-10 4,096 with temperature 0.1 and
    momentum 0.99; for version 3: hidden layers of 4096, temperature 1 (ResNet-50) or 0.2 (ViT).
    """

    name: ClassVar[str] = "moco"

    class Parameters(Objective.Parameters):
        """See the fields."""

        version: Literal[2, 3] = Field(2, description="2: a queue; 3: a predictor, and no queue.")
        temperature: float | None = Field(None, gt=0, description="What cosines are divided by; else 0.2, in version 3 1.")
        momentum: float | None = Field(
            None, ge=0, le=1, description="Of the momentum network; else 0.999, in version 3 from 0.99 to 1 by a cosine."
        )
        queue: int = Field(65536, ge=1, description="Keys that the queue of version 2 holds.")
        hidden: int | None = Field(None, ge=1, description="Width of the hidden layers; else that of the features.")
        width: int = Field(128, ge=2, description="Numbers that a view is compared by.")

    queue: Tensor
    filled: Tensor

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        own = self.Parameters(**parameters_of(task))
        hidden, is_third = own.hidden or backbone.vector_width, own.version == 3
        self.temperature = own.temperature or (1.0 if is_third else 0.2)
        start = own.momentum if own.momentum is not None else 0.99 if is_third else 0.999
        self.schedule = (start, 1.0 if is_third else start)
        self.projector = mlp([backbone.vector_width, hidden, own.width], last_norm=is_third)
        self.predictor = mlp([own.width, hidden, own.width], last_norm=True) if is_third else nn.Identity()
        self.keep_copy(backbone, "projector")
        self.has_queue, self._keys = not is_third, None
        if self.has_queue:
            self.register_buffer("queue", torch.zeros(own.queue, own.width))
            self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    _keys: Tensor | None

    def compare(self, features: Tensor, shared: Shared) -> Compared:
        """As in `ViewObjective`."""
        online, target = self.split(features)
        queries = F.normalize(each(self.predictor, each(self.projector, online)), dim=2)
        keys = F.normalize(each(self.target_heads["projector"], target), dim=2)
        everyone = shared.rows.gather(keys)
        if self.has_queue:
            lines = self._queue_losses(queries, keys)
            if self.training:
                self._keys = shared.by_id(everyone).flatten(0, 1)
        else:
            lines = [
                2 * self.temperature * info_nce(queries[:, i], everyone[:, j], shared, self.temperature)
                for i, j in self._pairs(queries)
            ]
        loss = (torch.stack(lines).mean(0) * shared.weight).sum()
        return Compared(loss, queries[:, 0], keys[:, 1])

    def _pairs(self, queries: Tensor) -> list[tuple[int, int]]:
        return [(i, j) for i in range(queries.shape[1]) for j in range(self.views) if i != j]

    def _queue_losses(self, queries: Tensor, keys: Tensor) -> list[Tensor]:
        empty = torch.arange(len(self.queue), device=keys.device) >= self.filled
        found = []
        for i, j in self._pairs(queries):
            against = (queries[:, i] @ self.queue.T).masked_fill(empty, MINUS)
            logits = torch.cat([(queries[:, i] * keys[:, j]).sum(1, keepdim=True), against], 1) / self.temperature
            found.append(F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64), reduction="none"))
        return found

    @torch.no_grad()
    def after_update(self, backbone: Backbone) -> None:
        """As in `Objective`; the batch's keys enter the queue, and the oldest leave it."""
        super().after_update(backbone)
        if self._keys is not None:
            size = len(self.queue)
            self.filled.copy_((self.filled + len(self._keys)).clamp(max=size))
            self.queue.copy_(torch.cat([self._keys, self.queue])[:size])
            self._keys = None
