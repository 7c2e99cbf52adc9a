"""Jigsaw as order: predict where each of the shuffled patches belongs."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from pipeline.draws import Stream
from pipeline.engines.vocabulary import Ops
from pipeline.labels import Order
from pipeline.tasks.base import Drawn, Task
from pipeline.tasks.jigsaw import Jigsaw, patches_shown


class JigsawOrder(Task):
    """The crop is cut into a grid of patches, which are shuffled in any order; the label is where each of them belongs.

    The patches are those of `jigsaw`, with its gap, jitter and loss of colour; but any order may be drawn, and the label is the
    place of every patch, not one of P permutations.
    """

    name: ClassVar[str] = "jigsaw_order"
    source: ClassVar[str] = "Cruz et al., DeepPermNet: visual permutation learning, CVPR 2017"
    input_norm: ClassVar[Literal["image", "patch"]] = "patch"

    grid: int = Field(3, ge=2, le=6, description="Patches along each side.")
    gap: float = Field(0.06, ge=0, lt=0.5, description="Least gap between neighbouring patches, as a share of a cell's side.")
    jitter: float = Field(0.1, ge=0, lt=0.5, description="Range in which a patch's place is drawn, as a share of a cell's side.")
    gray: float = Field(0.3, ge=0, le=1, description="Share of the images that lose their colour.")

    def _jigsaw(self) -> Jigsaw:
        return Jigsaw(grid=self.grid, gap=self.gap, jitter=self.jitter, gray=self.gray, permutations=2)

    def check(self, size: int) -> None:
        self._jigsaw().check(size)

    def label_kind(self) -> Order:
        return Order(self.grid**2)

    def input_shape(self, size: int) -> tuple[int, ...]:
        return self._jigsaw().input_shape(size)

    def draw(self, rng: Stream, size: int) -> Drawn:
        order = np.argsort(rng.words("order", self.grid**2), axis=1, kind="stable")
        return {**self._jigsaw().places(rng, order, size), "label": order}

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        return self._jigsaw().render(ops, image, drawn)

    def caption(self, drawn: Drawn) -> str:
        return patches_shown(drawn["label"], self.grid)
