"""Occlusion: predict what a box, or several blocks, cover."""

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

    In place of one box there may be several blocks of drawn places, which share its area and may overlap. The fill is a constant,
    by default the mean colour, which is zero after the network's input is standardised.
    """

    name: ClassVar[str] = "occlusion"
    source: ClassVar[str] = "Pathak et al., Context encoders: feature learning by inpainting, CVPR 2016"

    area: tuple[float, float] = Field((0.1, 0.3), description="Least and greatest share of the crop that the box covers.")
    blocks: int = Field(1, ge=1, le=32, description="How many blocks share that area; 1 is the one box.")
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
        least, most = (share / self.blocks for share in self.area)
        longest = (most * max(self.ratio[1], 1 / self.ratio[0])) ** 0.5
        if longest > 1:
            raise ValueError(
                f"a box of area {most:.4g} and ratio {list(self.ratio)} can be {longest:.2f} of the image's side; "
                "make area or ratio smaller, so that it is at most 1"
            )
        if least * size * size < 4:
            raise ValueError(f"a box of area {least:.4g} on {size} pixels covers less than 4 pixels")

    def label_kind(self) -> Pixels:
        return Pixels(target="image", masked=True)

    def input_shape(self, size: int) -> tuple[int, ...]:
        return (size, size, 3)

    def draw(self, rng: Stream, size: int) -> Drawn:
        several = (self.blocks,)
        (least, greatest), (narrow, wide) = self.area, np.log(self.ratio)
        area = rng.uniform("area", least, greatest, shape=several) * size * size / self.blocks
        ratio = np.exp(rng.uniform("ratio", narrow, wide, shape=several))
        height = np.clip(np.rint(np.sqrt(area / ratio)), 1, size).astype(np.int64)
        width = np.clip(np.rint(np.sqrt(area * ratio)), 1, size).astype(np.int64)
        top, left = (rng.integers(what, size - side + 1, shape=several) for what, side in (("top", height), ("left", width)))
        mask = np.zeros((rng.n, size, size), bool)
        line = np.arange(size)
        for k in range(self.blocks):
            rows = (line >= top[:, [k]]) & (line < (top + height)[:, [k]])
            columns = (line >= left[:, [k]]) & (line < (left + width)[:, [k]])
            mask |= rows[:, :, None] & columns[:, None, :]
        return {"boxes": np.stack([top, left, height, width], axis=2), "mask": mask.view(np.uint8)}

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        return ops.erase(image, drawn["boxes"], self.fill)

    def caption(self, drawn: Drawn) -> str:
        return f"what the {'box hides' if self.blocks == 1 else 'blocks hide'}, {drawn['mask'].mean():.0%} of the crop"
