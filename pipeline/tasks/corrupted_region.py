"""Corrupted region: find the cell of an image that was replaced, blurred or covered with noise."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from pipeline.draws import Stream
from pipeline.engines.noise_field import REACH
from pipeline.engines.vocabulary import Ops
from pipeline.labels import Region
from pipeline.tasks.base import Drawn, Task

_SMALLEST = 4
_NOISE = 80.0
Fault = Literal["moved", "noise", "blur"]


class CorruptedRegion(Task):
    """One cell of a grid is replaced by another part of the image, covered with noise, or blurred; the label is which cell.

    The cell's mask is a label, too. The other part lies at least one cell away.
    """

    name: ClassVar[str] = "corrupted_region"
    source: ClassVar[str] = (
        "Jing and Tian, Self-supervised visual feature learning with deep neural networks: a survey, PAMI 2021"
    )

    grid: int = Field(4, ge=2, le=16, description="Cells along each side.")
    faults: tuple[Fault, ...] = Field(
        ("moved", "noise", "blur"), description="What may happen to the cell; one of these is drawn, all with equal probability."
    )

    @field_validator("faults")
    @classmethod
    def _some(cls, faults: tuple[Fault, ...]) -> tuple[Fault, ...]:
        if not faults or len(set(faults)) < len(faults):
            raise ValueError("needs one or more faults, each once")
        return faults

    def check(self, size: int) -> None:
        if size // self.grid < _SMALLEST:
            raise ValueError(
                f"a {self.grid}x{self.grid} grid on {size} pixels has cells of {size // self.grid} pixels; they need at least "
                f"{_SMALLEST}: take a smaller grid or larger images"
            )

    def label_kind(self) -> Region:
        return Region(self.grid)

    def input_shape(self, size: int) -> tuple[int, ...]:
        return (size, size, 3)

    def draw(self, rng: Stream, size: int) -> Drawn:
        edges = np.arange(self.grid + 1) * size // self.grid
        label, fault = rng.integers("cell", self.grid**2), np.array(self.faults)[rng.integers("fault", len(self.faults))]
        row, column = np.divmod(label, self.grid)
        line = np.arange(size)
        rows = (line >= edges[row][:, None]) & (line < edges[row + 1][:, None])
        columns = (line >= edges[column][:, None]) & (line < edges[column + 1][:, None])
        # Another cell, by its distance in reading order, so that it is never the same one.
        there = (label + 1 + rng.integers("from", self.grid**2 - 1)) % self.grid**2
        by = np.stack([edges[there % self.grid] - edges[column], edges[there // self.grid] - edges[row]], axis=1)
        matrix = np.broadcast_to(np.eye(2, 3), (rng.n, 2, 3)).copy()
        matrix[:, :, 2] = np.where((fault == "moved")[:, None], by, 0)
        return {
            "matrix": matrix,
            "corners": rng.integers("corners", REACH + 1, shape=(2, 2)),
            "gain": np.zeros(rng.n),
            "level": np.where(fault == "noise", _NOISE, 0.0),
            "sigma": np.where(fault == "blur", size / self.grid / 4, 0.0),
            "label": label,
            "mask": (rows[:, :, None] & columns[:, None, :]).astype(np.uint8),
        }

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        other = ops.affine(image, drawn["matrix"], ops.size)
        other = ops.noise(ops.blur(other, drawn["sigma"]), drawn["corners"], drawn["gain"], drawn["level"])
        return ops.paste(image, other, drawn["mask"])

    def caption(self, drawn: Drawn) -> str:
        what = "noise" if drawn["level"] else "blur" if drawn["sigma"] else "another place"
        row, column = divmod(int(drawn["label"]), self.grid)
        return f"{what} in row {row + 1}, column {column + 1}"
