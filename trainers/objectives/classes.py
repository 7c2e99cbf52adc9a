"""Objective of class labels: a classifier on the feature vectors, cross-entropy, accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.labels import Classes
from pipeline.tasks import Task
from trainers.networks.backbones import Backbone
from trainers.objectives.base import Outcome
from trainers.objectives.head import VectorObjective

MOST_BALANCE = 10.0
"""The greatest weight that the image of a small class is given: a class of one image would govern the batch that it is in."""


class ClassesObjective(VectorObjective):
    """Cross-entropy over the task's classes, predicted from one image, or from several patches together."""

    name = "classes"
    kind = Classes
    metric = "accuracy"
    higher_is_better = True

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        kind = task.label_kind()
        assert isinstance(kind, Classes)
        super().__init__(task, backbone, image_size, kind.count)
        self.classes = kind.count
        self.register_buffer("shares", None, persistent=False)
        self.shares: Tensor | None

    def balance(self, sizes: Sequence[int]) -> None:
        """Weigh samples so that all classes count alike, by their sizes; a class without images has no say in it."""
        counts = torch.zeros(self.classes)
        counts[: len(sizes)] = torch.tensor(sizes, dtype=torch.float32)
        even = counts.sum() / (counts > 0).sum().clamp_min(1)
        self.shares = (even / counts.clamp_min(1)).clamp_max(MOST_BALANCE)

    def judge(self, answer: Tensor, batch: dict[str, Tensor], name: str) -> Outcome:
        """Compare logits (n, classes) with `<task>.label`, int64 (n,); a sample of label -1 has none, and does not count.

        Where the batch has `<task>.weight`, float32 (n,), a sample counts so much in loss and accuracy.
        """
        given = batch[f"{name}.label"]
        label, weight = given.clamp_min(0), batch["weight"] * (given >= 0)
        if (of_task := batch.get(f"{name}.weight")) is not None:
            weight = weight * of_task
        if self.shares is not None:
            weight = weight * self.shares[label]
        with torch.no_grad():
            right = (answer.argmax(1) == label).float()
            count = weight.sum()
        return Outcome(
            loss=(F.cross_entropy(answer, label, reduction="none") * weight).sum(),
            metric=(right * weight).sum(),
            trivial=count / self.classes,
            count=count,
        )
