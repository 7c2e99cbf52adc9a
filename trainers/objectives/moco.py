"""MoCo: find the key of another view of a photo among keys of other photos, which a momentum network computes."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.tasks import Task
from trainers.networks.backbones import Backbone
from trainers.objectives.base import Objective
from trainers.objectives.views import MINUS, Compared, MomentumObjective, Shared, enqueue, info_nce, mlp, parameters_of


class MocoObjective(MomentumObjective):
    """InfoNCE with keys of a momentum network: version 2 (Chen et al. 2020) has a queue of keys, 3 (Chen et al. 2021) has none.

    Version 2 compares a view with the key of another view and with the keys of earlier batches. The queue starts empty; keys
    enter it in order of their samples' ids, so it does not depend on the number of ranks. Version 3 has a predictor, compares
    within the batch of all ranks, and multiplies the loss by twice the temperature. Both take each view as query and as key in
    turn; the paper's version 2 takes the first as query only, at half the work.

    The paper shuffles samples between GPUs before the keys' batch normalisation, so that its statistics do not reveal which key
    belongs to which query. Here samples are not shuffled: with `training.batch_norm: global`, the default, statistics are those
    of the whole batch in any order, and reveal less the larger it is; with `local`, on several ranks, they reveal it. Queries
    and keys of one view are a batch of their own. Published for version 2: a queue of 65,536; for CIFAR-10 a queue of 4,096,
    temperature 0.1 and momentum 0.99. For version 3: hidden layers of 4096, temperature 1 (ResNet-50) or 0.2 (ViT).
    """

    name: ClassVar[str] = "moco"
    views_apart: ClassVar[bool] = True

    class Parameters(Objective.Parameters):
        """See the fields."""

        version: Literal[2, 3] = Field(2, description="2: with a queue; 3: with a predictor and without a queue.")
        temperature: float | None = Field(
            None, gt=0, description="Number by which cosines are divided; else 0.2, and 1 in version 3."
        )
        momentum: float | None = Field(
            None, ge=0, le=1, description="Momentum; else 0.999, and in version 3 it rises from 0.99 to 1 along half a cosine."
        )
        queue: int = Field(65536, ge=1, description="Number of keys in the queue of version 2.")
        hidden: int | None = Field(None, ge=1, description="Width of the hidden layers; else the width of the features.")
        width: int = Field(128, ge=2, description="Width of the vectors in which views are compared.")

    queue: Tensor
    filled: Tensor

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        settings = self.Parameters(**parameters_of(task))
        hidden, is_third = settings.hidden or backbone.vector_width, settings.version == 3
        self.temperature = settings.temperature or (1.0 if is_third else 0.2)
        start = settings.momentum if settings.momentum is not None else 0.99 if is_third else 0.999
        self.schedule = (start, 1.0 if is_third else start)
        self.projector = mlp([backbone.vector_width, hidden, settings.width], last_norm=is_third)
        self.predictor = mlp([settings.width, hidden, settings.width], last_norm=True) if is_third else nn.Identity()
        self.make_momentum_network(backbone, "projector")
        self.has_queue, self._keys = not is_third, None
        if self.has_queue:
            self.register_buffer("queue", torch.zeros(settings.queue, settings.width))
            self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    _keys: Tensor | None

    def compare(self, features: Tensor, shared: Shared) -> Compared:
        """As in `ViewObjective`."""
        online, target = self.split(features)
        queries = F.normalize(self.per_view(self.predictor, self.per_view(self.projector, online)), dim=2)
        keys = F.normalize(self.per_view(self.target_heads["projector"], target), dim=2)
        gathered = shared.rows.gather(keys)
        if self.has_queue:
            lines = self._queue_losses(queries, keys)
            if self.training:
                self._keys = shared.by_id(gathered).flatten(0, 1)
        else:
            lines = [
                2 * self.temperature * info_nce(queries[:, i], gathered[:, j], shared, self.temperature)
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
        """As in `Objective`; adds the batch's keys to the queue and drops the oldest, too."""
        super().after_update(backbone)
        if self._keys is not None:
            enqueue(self.queue, self.filled, self._keys)
            self._keys = None
