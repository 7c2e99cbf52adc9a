"""Relative position: predict on which side of the middle patch the other patch was."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from pipeline.draws import Stream
from pipeline.engines.vocabulary import Ops
from pipeline.labels import Classes
from pipeline.tasks.base import Drawn, Task

_SMALLEST = 6
_SIDES = ("above left", "above", "above right", "left", "right", "below left", "below", "below right")


class RelativePosition(Task):
    """Two patches are cut from a 3 x 3 grid, the middle one and one of its eight neighbours; the label is which neighbour.

    Between the patches lies a gap, and each is taken at a drawn place inside its cell, so that edges do not line up; each is
    standardised by itself; and a share of the images loses its colour, so that chromatic aberration is no hint.
    """

    name: ClassVar[str] = "relative_position"
    source: ClassVar[str] = "Doersch et al., Unsupervised visual representation learning by context prediction, ICCV 2015"
    input_norm: ClassVar[Literal["image", "patch"]] = "patch"

    gap: float = Field(0.2, ge=0, lt=0.6, description="Least gap between the patches, as a share of a cell's side.")
    jitter: float = Field(0.15, ge=0, lt=0.4, description="Range in which a patch's place is drawn, as a share of a cell's side.")
    gray: float = Field(0.5, ge=0, le=1, description="Share of the images that lose their colour.")

    def _sizes(self, size: int) -> tuple[int, int, int, int]:
        """Cell, patch, half the gap, and room for jitter, in pixels."""
        cell = size // 3
        gap, room = round(self.gap * cell), round(self.jitter * cell)
        return cell, cell - gap - room, gap // 2, room

    def check(self, size: int) -> None:
        cell, side, _, _ = self._sizes(size)
        if side < _SMALLEST:
            raise ValueError(
                f"on {size} pixels a cell has {cell} and a patch {side} pixels; patches need at least {_SMALLEST}: "
                "take a smaller gap or jitter, or larger images"
            )

    def label_kind(self) -> Classes:
        return Classes(len(_SIDES))

    def input_shape(self, size: int) -> tuple[int, ...]:
        side = self._sizes(size)[1]
        return (2, side, side, 3)

    def draw(self, rng: Stream, size: int) -> Drawn:
        cell, _, margin, room = self._sizes(size)
        label = rng.integers("neighbour", len(_SIDES))
        cells = np.stack([np.full(rng.n, 4), label + (label >= 4)], axis=1)
        corners = np.stack(np.divmod(cells, 3), axis=-1) * cell + margin
        offset = rng.integers("offset", room + 1, shape=corners.shape[1:])
        return {"corners": corners + offset, "gray": rng.uniform("gray") < self.gray, "label": label}

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        return ops.patches(ops.drop_colour(image, drawn["gray"]), drawn["corners"], self._sizes(ops.size)[1], 2)

    def caption(self, drawn: Drawn) -> str:
        side = _SIDES[drawn["label"]]
        return f"the second was {side} {'' if side in ('above', 'below') else 'of '}the first"
