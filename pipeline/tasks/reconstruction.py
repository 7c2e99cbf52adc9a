"""Reconstruction: what was it, told through a bottleneck?"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from pipeline.draws import Stream
from pipeline.engines.vocabulary import Ops
from pipeline.labels import Pixels
from pipeline.tasks.base import Drawn, ObjectiveChoice, Task


class Reconstruction(Task):
    """The image is asked to be painted again from a short vector that the network makes of it: an autoencoder.

    Input and label are the same pixels; what makes it a task is that the answer passes through `code` numbers.
    """

    name: ClassVar[str] = "reconstruction"
    source: ClassVar[str] = "Hinton and Salakhutdinov, Reducing the dimensionality of data with neural networks, Science 2006"

    code: int = Field(128, ge=1, le=4096, description="Numbers of the vector that all of the answer passes through.")
    objective: ObjectiveChoice = Field("bottleneck", description="Objective to use; the label kind's own knows no bottleneck.")

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
