"""Deblurring: predict the sharp crop from a blurred one."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

from pipeline.draws import Stream
from pipeline.engines.vocabulary import Ops
from pipeline.labels import Pixels
from pipeline.tasks.base import Drawn, Task


class Deblurring(Task):
    """The image is blurred by a Gaussian of drawn width; the label is the sharp crop."""

    name: ClassVar[str] = "deblurring"
    source: ClassVar[str] = "Nah et al., Deep multi-scale convolutional neural network for dynamic scene deblurring, CVPR 2017"

    width: tuple[float, float] = Field(
        (0.01, 0.04), description="Least and greatest standard deviation of the Gaussian, as a share of the crop's side."
    )

    @model_validator(mode="after")
    def _ranges(self) -> Deblurring:
        if not 0 < self.width[0] <= self.width[1] <= 0.15:
            raise ValueError(f"width {list(self.width)}: needs 0 < least <= greatest <= 0.15, beyond which no picture is left")
        return self

    def check(self, size: int) -> None:
        if self.width[0] * size < 0.25:
            raise ValueError(
                f"{self.width[0] * size:.2g} pixels blur nothing: on {size} pixels width begins at {0.25 / size:.2g}"
            )

    def label_kind(self) -> Pixels:
        return Pixels(target="image", spoilt=True)

    def input_shape(self, size: int) -> tuple[int, ...]:
        return (size, size, 3)

    def draw(self, rng: Stream, size: int) -> Drawn:
        return {"sigma": rng.uniform("width", *self.width) * size}

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        return ops.blur(image, drawn["sigma"])

    def caption(self, drawn: Drawn) -> str:
        return f"without its blur of {drawn['sigma']:.1f} pixels"
