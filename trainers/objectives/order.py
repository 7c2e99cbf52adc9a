"""Objective of order labels: predict the places of all patches together; cross-entropy, accuracy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.labels import Order
from pipeline.tasks import Task
from trainers.networks.backbones import Backbone
from trainers.objectives.base import Outcome
from trainers.objectives.head import VectorObjective


class OrderObjective(VectorObjective):
    """Cross-entropy over the places of each patch, averaged over the patches.

    The metric is the share of patches whose place is predicted correctly; a further one, `whole_orders`, is the share of samples
    of which all places are. The same place may be predicted for two patches: nothing forces the answers into a permutation.
    """

    name = "order"
    kind = Order
    metric = "accuracy"
    higher_is_better = True

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        kind = task.label_kind()
        assert isinstance(kind, Order)
        super().__init__(task, backbone, image_size, kind.items**2)
        self.items = kind.items

    def judge(self, answer: Tensor, batch: dict[str, Tensor], name: str) -> Outcome:
        """Compare logits (n, k * k) with the patches' places, `<task>.label`, int64 (n, k)."""
        label, weight = batch[f"{name}.label"], batch["weight"]
        logits = answer.view(-1, self.items, self.items)
        with torch.no_grad():
            right = (logits.argmax(2) == label).float()
            count = weight.sum()
        losses = F.cross_entropy(logits.flatten(0, 1), label.flatten(), reduction="none").view_as(label).mean(1)
        return Outcome(
            loss=(losses * weight).sum(),
            metric=(right.mean(1) * weight).sum(),
            trivial=count / self.items,
            count=count,
            also={"whole_orders": (right.amin(1) * weight).sum()},
        )
