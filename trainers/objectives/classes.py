"""Objective of class labels: a classifier on the feature vectors, cross-entropy, accuracy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.labels import Classes
from pipeline.tasks import Task
from trainers.networks.backbones import Backbone
from trainers.objectives.base import Outcome
from trainers.objectives.head import VectorObjective


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

    def judge(self, answer: Tensor, batch: dict[str, Tensor], name: str) -> Outcome:
        """Compare logits (n, classes) with `<task>.label`, int64 (n,); a sample of label -1 has none, and does not count.

        Where the batch has `<task>.weight`, float32 (n,), a sample counts so much in loss and accuracy.
        """
        given = batch[f"{name}.label"]
        label, weight = given.clamp_min(0), batch["weight"] * (given >= 0)
        if (of_task := batch.get(f"{name}.weight")) is not None:
            weight = weight * of_task
        with torch.no_grad():
            right = (answer.argmax(1) == label).float()
            count = weight.sum()
        return Outcome(
            loss=(F.cross_entropy(answer, label, reduction="none") * weight).sum(),
            metric=(right * weight).sum(),
            trivial=count / self.classes,
            count=count,
        )
