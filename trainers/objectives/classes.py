"""One of several classes: a linear classifier on the feature vector, cross-entropy, accuracy."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.labels import Classes
from pipeline.tasks import Task
from trainers.backbones import Backbone
from trainers.inputs import Normaliser
from trainers.objectives.base import Objective, Outcome

HIDDEN = 512
"""Width of the layer that sees all patches together."""


class ClassesObjective(Objective):
    """Cross-entropy over the task's classes.

    One image a sample is classified by one linear layer. Of k patches a sample each goes through the backbone alone, and a
    hidden layer sees the k vectors side by side: the context-free network of Noroozi & Favaro 2016, section 3.2.
    """

    name = "classes"
    kind = Classes
    needs = "vector"
    metric = "accuracy"
    higher_is_better = True

    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__(task, backbone, image_size)
        kind = task.label_kind()
        assert isinstance(kind, Classes)
        self.classes = kind.count
        self.norm = task.input_norm
        shape = task.input_shape(image_size)
        if len(shape) == 4:
            wide = shape[0] * backbone.vector_width
            hidden = [nn.Linear(wide, HIDDEN), nn.LayerNorm(HIDDEN), nn.ReLU(inplace=True)]
            self.head = nn.Sequential(*hidden, nn.Linear(HIDDEN, kind.count))
        else:
            self.head = nn.Sequential(nn.Linear(backbone.vector_width, kind.count))

    def forward(self, backbone: Backbone, batch: dict[str, Tensor], name: str, pixels: Normaliser) -> Outcome:
        """Classify `<task>.input`, uint8 (n, h, w, c) or (n, k, h, w, c), against `<task>.label`, int64 (n,)."""
        label, weight = batch[f"{name}.label"], batch["weight"]
        vector = backbone(pixels(batch[f"{name}.input"], self.norm)).vector
        logits = self.head(vector.reshape(len(label), -1)).float()
        with torch.no_grad():
            right = (logits.argmax(1) == label).float()
            count = weight.sum()
        return Outcome(
            loss=F.cross_entropy(logits, label, reduction="none") * weight,
            metric=(right * weight).sum(),
            trivial=count / self.classes,
            count=count,
        )
