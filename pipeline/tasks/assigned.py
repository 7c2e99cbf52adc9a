"""Assigned labels: predict the class that another model gave the image, such as the number of its cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from pipeline.draws import Stream
from pipeline.engines.vocabulary import Ops
from pipeline.labels import Classes
from pipeline.tasks.base import ANNOTATION, WEIGHT, Drawn, Task
from pipeline.tasks.supervised import checked_labels


class Assigned(Task):
    """The input is the crop, and the label is the one that a table beside the corpus has for the image.

    Numbers of clusters make this DeepCluster's and ClusterFit's task, classes that a teacher named make it self-training. An
    image without a label counts neither in the loss nor in the accuracy; where the annotation names a column of weights, each
    counts as much as that says.
    """

    name: ClassVar[str] = "assigned"
    source: ClassVar[str] = "Caron et al., Deep clustering for unsupervised learning of visual features, ECCV 2018"

    annotation: str = Field("labels", description="Which labels: a name in `corpus.annotations`.")
    classes: int = Field(64, ge=2, description="Number of classes, such as that of clusters; labels are 0 to `classes` - 1.")
    balance: bool = Field(
        False,
        exclude_if=lambda balance: not balance,
        description="Weigh each image by the inverse size of its class, at most tenfold, so that all classes count alike. Sizes "
        "are those in the tables' `report.json`, of all images.",
    )
    head: Literal["new", "kept"] = Field(
        "new",
        exclude_if=lambda head: head == "new",
        description="The classifier from which training starts: a `new` one, or the one `kept` beside the weights of "
        "`training.backbone.weights`, which a run with a task of this name has left.",
    )

    def label_kind(self) -> Classes:
        return Classes(self.classes)

    def input_shape(self, size: int) -> tuple[int, ...]:
        return (size, size, 3)

    def draw(self, rng: Stream, size: int) -> Drawn:
        return {"label": np.full(rng.n, -1, np.int64)}

    def given(self, known: Mapping[str, np.ndarray]) -> Drawn:
        name = f"{ANNOTATION}{self.annotation}"
        label = checked_labels(known[name], self.classes, f"corpus.annotations.{self.annotation} has label")
        weight = known.get(f"{name}{WEIGHT}")
        return {"label": label} if weight is None else {"label": label, "weight": weight}

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        return image

    def caption(self, drawn: Drawn) -> str:
        weight = f", weight {drawn['weight']:.2f}" if "weight" in drawn else ""
        return "no label" if drawn["label"] < 0 else f"label {drawn['label']}{weight}"
