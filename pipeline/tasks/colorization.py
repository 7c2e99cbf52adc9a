"""Colorization: predict the colours of a crop from its brightness."""

from __future__ import annotations

from typing import Any, ClassVar

from pipeline.draws import Stream
from pipeline.engines.vocabulary import Ops
from pipeline.labels import Pixels
from pipeline.tasks.base import Drawn, Task


class Colorization(Task):
    """The network sees only the brightness; the label is the two colour-difference channels of the untouched crop.

    The loss is on the chroma only, since the brightness is given.
    """

    name: ClassVar[str] = "colorization"
    source: ClassVar[str] = "Zhang et al., Colorful image colorization, ECCV 2016"

    def label_kind(self) -> Pixels:
        return Pixels(target="image", channels="chroma")

    def input_shape(self, size: int) -> tuple[int, ...]:
        return (size, size, 1)

    def draw(self, rng: Stream, size: int) -> Drawn:
        return {}

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        return ops.gray(image)

    def caption(self, drawn: Drawn) -> str:
        return "its colours"
