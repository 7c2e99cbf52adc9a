"""Occlusion: what was behind the box?"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from pipeline.draws import Stream
from pipeline.engines.vocabulary import Ops
from pipeline.labels import Pixels
from pipeline.tasks.base import Drawn, Task


class Occlusion(Task):
    """A box of drawn place and size is painted over; the label is the untouched crop, and a mask says where the box was.

    The fill is a constant, by default the mean colour, which is zero after the network's input is standardised.
    """

    name: ClassVar[str] = "occlusion"
    source: ClassVar[str] = "Pathak et al., Context encoders: feature learning by inpainting, CVPR 2016"

    area: tuple[float, float] = Field((0.1, 0.3), description="Least and greatest share of the crop that the box covers.")
    ratio: tuple[float, float] = Field((0.5, 2.0), description="Least and greatest width over height of the box.")
    fill: tuple[int, int, int] = Field((124, 116, 104), description="Colour of the box: red, green, blue, 0 to 255.")

    @model_validator(mode="after")
    def _ranges(self) -> Occlusion:
        if not 0 < self.area[0] <= self.area[1] < 1:
            raise ValueError(f"area {list(self.area)}: needs 0 < least <= greatest < 1; the box must leave something to see")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio {list(self.ratio)}: needs 0 < least <= greatest")
        if not all(0 <= channel <= 255 for channel in self.fill):
            raise ValueError(f"fill {list(self.fill)}: every channel lies between 0 and 255")
        return self

    def check(self, size: int) -> None:
        longest = (self.area[1] * max(self.ratio[1], 1 / self.ratio[0])) ** 0.5
        if longest > 1:
            raise ValueError(
                f"a box of area {self.area[1]} and ratio {list(self.ratio)} can be {longest:.2f} of the image's side; "
                "make area or ratio smaller, so that it is at most 1"
            )
        if self.area[0] * size * size < 4:
            raise ValueError(f"a box of area {self.area[0]} on {size} pixels covers less than 4 pixels")

    def label_kind(self) -> Pixels:
        return Pixels(target="image", masked=True)

    def input_shape(self, size: int) -> tuple[int, ...]:
        return (size, size, 3)

    def draw(self, rng: Stream, size: int) -> Drawn:
        area = rng.uniform("area", *self.area) * size * size
        ratio = np.exp(rng.uniform("ratio", *np.log(self.ratio)))
        height = np.clip(np.rint(np.sqrt(area / ratio)), 1, size).astype(np.int64)
        width = np.clip(np.rint(np.sqrt(area * ratio)), 1, size).astype(np.int64)
        top, left = rng.integers("top", size - height + 1), rng.integers("left", size - width + 1)
        line = np.arange(size)
        rows = (line >= top[:, None]) & (line < (top + height)[:, None])
        columns = (line >= left[:, None]) & (line < (left + width)[:, None])
        return {
            "boxes": np.stack([top, left, height, width], axis=1)[:, None],
            "mask": (rows[:, :, None] & columns[:, None, :]).astype(np.uint8),
        }

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        return ops.erase(image, drawn["boxes"], self.fill)

    def caption(self, drawn: Drawn) -> str:
        return f"what the box hides, {drawn['mask'].mean():.0%} of the crop"
