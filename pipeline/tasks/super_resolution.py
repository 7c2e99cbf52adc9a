"""Super-resolution: predict the full crop from a reduced one."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from pipeline.draws import Stream
from pipeline.engines.vocabulary import Ops
from pipeline.labels import Pixels
from pipeline.tasks.base import Drawn, Task

_SMALLEST = 4


class SuperResolution(Task):
    """The image is reduced, each square of pixels to its mean; the label is the full crop.

    The small image is enlarged bilinearly before the network takes it.
    """

    name: ClassVar[str] = "super_resolution"
    source: ClassVar[str] = "Dong et al., Learning a deep convolutional network for image super-resolution, ECCV 2014"

    factor: Literal[2, 4, 8] = Field(4, description="Pixels along the side of a square that becomes one pixel.")

    def check(self, size: int) -> None:
        if size % self.factor:
            fits = size - size % self.factor
            raise ValueError(
                f"{size} pixels cannot be reduced by {self.factor}: take an image.size of {fits} or {fits + self.factor}"
            )
        if size // self.factor < _SMALLEST:
            raise ValueError(f"{size} pixels reduced by {self.factor} are fewer than {_SMALLEST}: take a smaller factor")

    def label_kind(self) -> Pixels:
        return Pixels(target="image", spoilt=True)

    def input_shape(self, size: int) -> tuple[int, ...]:
        return (size // self.factor, size // self.factor, 3)

    def draw(self, rng: Stream, size: int) -> Drawn:
        return {}

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        return ops.reduce(image, self.factor)

    def caption(self, drawn: Drawn) -> str:
        return f"{self.factor} times as large"
