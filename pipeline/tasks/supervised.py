"""Supervised: predict the class of the image, where it is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from pipeline.draws import Stream
from pipeline.engines.vocabulary import Ops
from pipeline.errors import UserError
from pipeline.labels import Classes
from pipeline.tasks.base import Drawn, Task

CLASSES = Field(10, ge=2, description="Number of classes of the corpus; labels are 0 to `classes` - 1.")


class Supervised(Task):
    """The input is the crop, and the label is the image's own class, where it is known.

    It is known where the shard has one (`cls`) that `corpus.labelled` does not hide; another image counts neither in the loss nor
    in the accuracy. Beside a pretext task on all images this is S4L; alone it is plain supervised learning.
    """

    name: ClassVar[str] = "supervised"
    source: ClassVar[str] = "Zhai et al., S4L: self-supervised semi-supervised learning, ICCV 2019"
    learns_classes: ClassVar[bool] = True

    classes: int = CLASSES

    def label_kind(self) -> Classes:
        return Classes(self.classes)

    def input_shape(self, size: int) -> tuple[int, ...]:
        return (size, size, 3)

    def draw(self, rng: Stream, size: int) -> Drawn:
        return {"label": np.full(rng.n, -1, np.int64)}

    def given(self, known: Mapping[str, np.ndarray]) -> Drawn:
        return {"label": checked_labels(known["class"], self.classes)}

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        return image

    def caption(self, drawn: Drawn) -> str:
        return "not known" if drawn["label"] < 0 else f"class {drawn['label']}"


def checked_labels(labels: np.ndarray, classes: int, has: str = "the corpus has the class") -> np.ndarray:
    """Return the classes of images, int64 (n,), -1 where none is known; `has` begins the error.

    Raises:
        UserError: there is one that the task does not expect.
    """
    if len(labels) and labels.max() >= classes:
        raise UserError(f"{has} {labels.max()}, and the task expects {classes} classes, 0 to {classes - 1}: set its `classes`")
    return labels
