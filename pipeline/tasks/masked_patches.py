"""Masked patches: predict the pixels of the many patches that are hidden."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from pipeline.draws import Stream
from pipeline.engines.vocabulary import Ops
from pipeline.labels import Pixels
from pipeline.tasks.base import Drawn, Task


class MaskedPatches(Task):
    """Most patches of a grid are painted over, at random; the label is their pixels, each patch standardised by itself.

    A patch's mean and contrast are no part of the label, so it does not help to copy the colour of its neighbours.
    """

    name: ClassVar[str] = "masked_patches"
    source: ClassVar[str] = "He et al., Masked autoencoders are scalable vision learners, CVPR 2022"

    grid: int = Field(8, ge=2, le=32, description="Patches along each side; pixels beyond a whole number of them stay visible.")
    share: float = Field(0.75, gt=0, lt=1, description="Share of the patches that is hidden.")
    fill: tuple[int, int, int] = Field((124, 116, 104), description="Colour of hidden patches: red, green, blue, 0 to 255.")

    def _hidden(self) -> int:
        return round(self.share * self.grid**2)

    def check(self, size: int) -> None:
        if size // self.grid < 2:
            raise ValueError(f"a {self.grid}x{self.grid} grid on {size} pixels has patches of less than 2: take a smaller grid")
        if not 0 < self._hidden() < self.grid**2:
            raise ValueError(
                f"a share of {self.share} hides {self._hidden()} of {self.grid**2} patches: some must be hidden, some seen"
            )
        if not all(0 <= channel <= 255 for channel in self.fill):
            raise ValueError(f"fill {list(self.fill)}: every channel lies between 0 and 255")

    def label_kind(self) -> Pixels:
        return Pixels(target="image", masked=True, grid=self.grid)

    def input_shape(self, size: int) -> tuple[int, ...]:
        return (size, size, 3)

    def draw(self, rng: Stream, size: int) -> Drawn:
        patch = size // self.grid
        margin = (size - patch * self.grid) // 2
        cells = np.argsort(rng.words("order", self.grid**2), axis=1, kind="stable")[:, : self._hidden()]
        hidden = np.zeros((rng.n, self.grid**2), np.uint8)
        np.put_along_axis(hidden, cells, 1, axis=1)
        inside = hidden.reshape(-1, self.grid, self.grid).repeat(patch, axis=1).repeat(patch, axis=2)
        mask = np.zeros((rng.n, size, size), np.uint8)
        mask[:, margin : margin + patch * self.grid, margin : margin + patch * self.grid] = inside
        corners = margin + patch * np.stack(np.divmod(cells, self.grid), axis=-1)
        return {"boxes": np.concatenate([corners, np.full_like(corners, patch)], axis=2), "mask": mask}

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        return ops.erase(image, drawn["boxes"], self.fill)

    def caption(self, drawn: Drawn) -> str:
        return f"what {self._hidden()} of {self.grid**2} patches hide"
