"""Rotation: predict by how many quarter turns an image was turned."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from pipeline.draws import Stream
from pipeline.engines.vocabulary import Ops
from pipeline.labels import Classes
from pipeline.tasks.base import Drawn, Task


class Rotation(Task):
    """The image is turned by a drawn number of quarter turns, and the label is which of them.

    Quarter turns move pixels without interpolation, so neither borders nor resampling reveal the answer.
    """

    name: ClassVar[str] = "rotation"
    source: ClassVar[str] = "Gidaris et al., Unsupervised representation learning by predicting image rotations, ICLR 2018"

    turns: tuple[Literal[0, 1, 2, 3], ...] = Field(
        (0, 1, 2, 3),
        description="Quarter turns, counter-clockwise, that may be drawn: two or more; the label is the position in this list.",
    )

    @field_validator("turns")
    @classmethod
    def _distinct(cls, turns: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(turns)) < len(turns):
            raise ValueError("repeats a turn; there are four different quarter turns: 0, 1, 2, 3")
        if len(turns) < 2:
            raise ValueError("needs at least two turns to tell apart")
        return turns

    def label_kind(self) -> Classes:
        return Classes(len(self.turns))

    def input_shape(self, size: int) -> tuple[int, ...]:
        return (size, size, 3)

    def draw(self, rng: Stream, size: int) -> Drawn:
        label = rng.integers("turn", len(self.turns))
        return {"turns": np.asarray(self.turns)[label], "label": label}

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        return ops.rotate90(image, drawn["turns"])

    def caption(self, drawn: Drawn) -> str:
        return f"turned {90 * drawn['turns']}°"
