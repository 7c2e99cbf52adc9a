"""Reconstruction: predict the crop itself, through a bottleneck."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from pipeline.draws import Stream
from pipeline.engines.vocabulary import Ops
from pipeline.labels import Pixels
from pipeline.tasks.base import Drawn, ObjectiveChoice, Task


class Reconstruction(Task):
    """The network encodes the image as a short vector, and the image is reconstructed from that: an autoencoder.

    Input and label are the same pixels; the difficulty is that the answer passes through only `code` numbers.
    """

    name: ClassVar[str] = "reconstruction"
    source: ClassVar[str] = "Hinton and Salakhutdinov, Reducing the dimensionality of data with neural networks, Science 2006"

    code: int = Field(128, ge=1, le=4096, description="Length of the vector that the whole answer passes through.")
    objective: ObjectiveChoice = Field(
        "bottleneck", description="Objective to use; the default of the label kind has no bottleneck."
    )

    def check(self, size: int) -> None:
        if self.code >= size * size * 3:
            raise ValueError(f"{self.code} numbers are no bottleneck for the {size * size * 3} of {size} x {size} pixels")

    def label_kind(self) -> Pixels:
        return Pixels(target="image", code=self.code)

    def input_shape(self, size: int) -> tuple[int, ...]:
        return (size, size, 3)

    def draw(self, rng: Stream, size: int) -> Drawn:
        return {}

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        return image

    def caption(self, drawn: Drawn) -> str:
        return f"itself, through {self.code} numbers"
