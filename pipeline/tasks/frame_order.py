"""Frame order: in which order are the frames of a clip, or are they in order at all?"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from pipeline.draws import Stream
from pipeline.engines.vocabulary import Ops
from pipeline.labels import Classes, Order
from pipeline.tasks.base import Drawn, Task

_KEPT = ((0, 1, 2), (2, 1, 0))
_MIXED = ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1))
"""Orders in which time runs through the frames, forwards or backwards, and in which it does not."""


class FrameOrder(Task):
    """Three frames of a clip are shown in a drawn order; the label is what the order is, or whether time runs through them.

    For `order` each of the six orders is as likely, and forwards and backwards are told apart. For `verification` a clip that is
    played backwards is in order too, as in the paper: it is out of order when the frame in the middle is not the middle one.
    Half of the samples are in order. The paper takes its frames out of five, so that clips in and out of order begin and end
    alike; here a sample's three are all there is. All frames have the same crop, and each is standardised by itself, so that
    light which fades is no clock.
    """

    name: ClassVar[str] = "frame_order"
    source: ClassVar[str] = "Misra et al., Shuffle and learn: unsupervised learning using temporal order verification, ECCV 2016"
    input_norm: ClassVar[Literal["image", "patch"]] = "patch"
    frames: ClassVar[int] = 3

    answer: Literal["order", "verification"] = Field(
        "order",
        description="`order` asks where each frame belongs, `verification` whether they are in order (class 1) or not (0).",
    )

    def label_kind(self) -> Classes | Order:
        return Classes(2) if self.answer == "verification" else Order(self.frames)

    def input_shape(self, size: int) -> tuple[int, ...]:
        return (self.frames, size, size, 3)

    def draw(self, rng: Stream, size: int) -> Drawn:
        verify = self.answer == "verification"
        orders = np.array((*_KEPT, *_KEPT, *_MIXED) if verify else (*_KEPT, *_MIXED))
        which = rng.integers("order", len(orders))
        corners = np.stack([orders * size, np.zeros_like(orders)], axis=2)[which]  # the frames lie below each other
        label = (which < len(_MIXED)).astype(np.int64) if verify else orders[which]
        return {"corners": corners, "order": orders[which], "label": label}

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        return ops.patches(image, drawn["corners"], ops.size, self.frames)

    def caption(self, drawn: Drawn) -> str:
        told = "" if self.answer == "order" else "in order: " if drawn["label"] else "not in order: "
        return f"{told}frames {' '.join(map(str, drawn['order'] + 1))}"
