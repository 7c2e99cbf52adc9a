"""Rotation by any angle: predict by which angle an image was turned."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from pipeline.draws import Stream
from pipeline.engines.noise_field import REACH
from pipeline.engines.vocabulary import Ops
from pipeline.labels import Classes, Direction
from pipeline.tasks.base import Drawn, Task

_SMALLEST = 10
_STEP = 1.5  # pixels of the crop for each pixel of the input
_SIGMA = 1.5  # pixels of the blur
_OFF = 1.0  # greatest offset of the square from the middle, pixels
_NOISE = 2.0  # levels


class RotationAngle(Task):
    """The image is turned by a drawn angle, and a square is cut from its middle; the label is the angle.

    Only the square that lies inside the turned image at every angle is shown, so no border reveals the answer. Resampling
    would: interpolation smooths pixels, by an amount that depends on the angle. Against that, the image is blurred first, until
    interpolation has nothing left to smooth; the square's place is drawn, within a pixel or two; the square is shown at a lower
    resolution; and weak noise is added, which hides what is left.
    """

    name: ClassVar[str] = "rotation_angle"
    source: ClassVar[str] = "Gidaris et al., Unsupervised representation learning by predicting image rotations, ICLR 2018"

    answer: Literal["vector", "class"] = Field(
        "vector",
        description="`vector` asks for the angle's sine and cosine, `class` for one of `classes` equal parts of the circle.",
    )
    classes: int = Field(8, ge=2, le=72, description="Into how many parts the circle is divided where a class is asked for.")

    def check(self, size: int) -> None:
        if self._side(size) < _SMALLEST:
            raise ValueError(f"of {size} pixels {self._side(size)} are left after turning; at least {_SMALLEST} are needed")

    def _side(self, size: int) -> int:
        """Side of the input: that of the greatest square inside the turned image at every angle and offset, over `_STEP`."""
        return int((size - 2 * _OFF) / 2**0.5 / _STEP)

    def label_kind(self) -> Classes | Direction:
        return Direction() if self.answer == "vector" else Classes(self.classes)

    def input_shape(self, size: int) -> tuple[int, ...]:
        return (self._side(size), self._side(size), 3)

    def draw(self, rng: Stream, size: int) -> Drawn:
        part = rng.uniform("angle")
        angle = 2 * np.pi * part
        cosine, sine = np.cos(angle), np.sin(angle)
        turn = _STEP * np.stack([np.stack([cosine, -sine], 1), np.stack([sine, cosine], 1)], axis=1)
        middle = size / 2 + rng.uniform("middle", -_OFF, _OFF, shape=(2,))
        shift = middle - turn.sum(axis=2) * self._side(size) / 2
        vector = np.stack([sine, cosine], axis=1).astype(np.float32)
        return {
            "matrix": np.concatenate([turn, shift[:, :, None]], axis=2),
            "sigma": np.full(rng.n, _SIGMA),
            "corners": rng.integers("corners", REACH + 1, shape=(2, 2)),
            "gain": np.zeros(rng.n),
            "level": np.full(rng.n, _NOISE),
            "label": vector if self.answer == "vector" else (part * self.classes).astype(np.int64),
        }

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        turned = ops.affine(ops.blur(image, drawn["sigma"]), drawn["matrix"], self._side(ops.size))
        return ops.noise(turned, drawn["corners"], drawn["gain"], drawn["level"])

    def caption(self, drawn: Drawn) -> str:
        across, along = drawn["matrix"][:, 0]
        return f"turned {np.rad2deg(np.arctan2(along, across)) % 360:.0f}°"
