"""Next pixel: predict the colour of the next pixel in reading order."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field, field_validator

from pipeline.draws import Stream
from pipeline.engines.vocabulary import Ops
from pipeline.labels import Colours
from pipeline.tasks.base import Drawn, Task

_FILL = (0, 0, 0)
_REGULAR = tuple((r, g, b) for r in (32, 96, 160, 224) for g in (32, 96, 160, 224) for b in (32, 96, 160, 224))


class NextPixel(Task):
    """A small version of the image is shown up to a drawn place, in reading order; the label is the colour of the next pixel.

    Label and input have the colours of a palette. A backbone takes a whole image and not one pixel after another, so each
    drawing has one pixel as its label. Over the epochs the labels cover every pixel, which gives the same likelihood, term by
    term.
    """

    name: ClassVar[str] = "next_pixel"
    source: ClassVar[str] = "Chen et al., Generative pretraining from pixels, ICML 2020"

    side: int = Field(16, ge=4, le=64, description="Side of the small version, pixels; image.size must be a multiple of it.")
    palette: tuple[tuple[int, int, int], ...] = Field(
        _REGULAR,
        description="Colours, red, green and blue of 255 each: 4 x 4 x 4 regular ones, or what `pseudolabel colours` learns from "
        "the corpus.",
    )

    @field_validator("palette")
    @classmethod
    def _colours(cls, palette: tuple[tuple[int, int, int], ...]) -> tuple[tuple[int, int, int], ...]:
        if len(palette) < 2 or len(set(palette)) < len(palette):
            raise ValueError("needs two or more colours, each once")
        if not all(0 <= channel <= 255 for colour in palette for channel in colour):
            raise ValueError("every channel of every colour lies between 0 and 255")
        return palette

    def check(self, size: int) -> None:
        if size % self.side:
            raise ValueError(f"{size} pixels cannot be reduced to {self.side}: take a side that divides {size}")

    def label_kind(self) -> Colours:
        return Colours(palette=self.palette, side=self.side, masked=True)

    def input_shape(self, size: int) -> tuple[int, ...]:
        return (self.side, self.side, 3)

    def draw(self, rng: Stream, size: int) -> Drawn:
        place = 1 + rng.integers("place", self.side**2 - 1)
        row, column = np.divmod(place, self.side)
        rest_of_row = np.stack([row, column, np.ones_like(row), self.side - column], axis=1)
        below = np.stack([row + 1, 0 * row, self.side - row - 1, np.full_like(row, self.side)], axis=1)
        below = np.where((row == self.side - 1)[:, None], rest_of_row, below)  # nothing is below the last row
        mask = np.zeros((rng.n, self.side**2), np.uint8)
        mask[np.arange(rng.n), place] = 1
        return {"boxes": np.stack([rest_of_row, below], axis=1), "mask": mask.reshape(-1, self.side, self.side)}

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        return ops.erase(ops.reduce(image, ops.size // self.side), drawn["boxes"], _FILL)

    def caption(self, drawn: Drawn) -> str:
        row, column = divmod(int(drawn["mask"].argmax()), self.side)
        return f"the colour in row {row + 1}, column {column + 1}"
