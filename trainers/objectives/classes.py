"""One of several classes: a linear classifier on the feature vector, cross-entropy, accuracy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.labels import Classes
from pipeline.tasks import Task
from trainers.backbones import Backbone
from trainers.inputs import Normaliser
from trainers.objectives.base import Outcome
from trainers.objectives.head import VectorObjective


class ClassesObjective(VectorObjective):
    """Cross-entropy over the task's classes, told from one image, or from several patches together."""

    name = "classes"
    kind = Classes
    metric = "accuracy"
    higher_is_better = True

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        kind = task.label_kind()
        assert isinstance(kind, Classes)
        super().__init__(task, backbone, image_size, kind.count)
        self.classes = kind.count

    def forward(self, backbone: Backbone, batch: dict[str, Tensor], name: str, pixels: Normaliser) -> Outcome:
        """Classify `<task>.input`, uint8 (n, h, w, c) or (n, k, h, w, c), against `<task>.label`, int64 (n,)."""
        label, weight = batch[f"{name}.label"], batch["weight"]
        logits = self.told(backbone, batch, name, pixels)
        with torch.no_grad():
            right = (logits.argmax(1) == label).float()
            count = weight.sum()
        return Outcome(
            loss=F.cross_entropy(logits, label, reduction="none") * weight,
            metric=(right * weight).sum(),
            trivial=count / self.classes,
            count=count,
        )
