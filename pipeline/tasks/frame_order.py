"""Frame order: predict the order of three frames of a clip, or whether they are in order."""

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
"""Orders of the frames: `_KEPT` forwards and backwards in time, `_MIXED` the others."""


class FrameOrder(Task):
    """Three frames of a clip are shown in a drawn order; the label is that order, or whether it is the order of time.

    For `order` the six orders are equally likely, and forwards and backwards are different. For `verification` a clip that is
    played backwards is in order too, as in the paper: a clip is out of order when its middle frame is not shown in the middle.
    Half of the samples are in order. The paper takes three of five frames, so that clips in and out of order begin and end
    alike; here a sample has only its three. All frames have the same crop, and each is standardised by itself, so that light
    which fades does not reveal the order.
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
        verdict = "" if self.answer == "order" else "in order: " if drawn["label"] else "not in order: "
        return f"{verdict}frames {' '.join(map(str, drawn['order'] + 1))}"
