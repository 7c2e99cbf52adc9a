"""Colour restoration: what colours had it before they were changed?"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from pipeline.draws import Stream
from pipeline.engines.vocabulary import Ops
from pipeline.labels import Pixels
from pipeline.tasks.base import Drawn, Task
from pipeline.tasks.jitter import TO_YIQ


class ColourRestoration(Task):
    """Brightness, contrast, saturation and hue are changed by drawn amounts; the label is the crop in its original colours.

    All four are one affine map of (red, green, blue), so the pixels are rounded once: hue and saturation turn and stretch the
    plane of colours, contrast stretches around mid-grey, brightness from black.
    """

    name: ClassVar[str] = "colour_restoration"
    source: ClassVar[str] = (
        "Jing and Tian, Self-supervised visual feature learning with deep neural networks: a survey, PAMI 2021"
    )

    brightness: float = Field(0.3, ge=0, lt=1, description="Greatest change of the brightness, as a share of it.")
    contrast: float = Field(0.3, ge=0, lt=1, description="Greatest change of the contrast, as a share of it.")
    saturation: float = Field(0.5, ge=0, lt=1, description="Greatest change of the saturation, as a share of it.")
    hue: float = Field(45.0, ge=0, le=180, description="Greatest change of the hue, degrees to either side.")

    def check(self, size: int) -> None:
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ValueError("nothing is changed: one of brightness, contrast, saturation and hue must be above 0")

    def label_kind(self) -> Pixels:
        return Pixels(target="image", spoilt=True)

    def input_shape(self, size: int) -> tuple[int, ...]:
        return (size, size, 3)

    def draw(self, rng: Stream, size: int) -> Drawn:
        def factor(what: str, most: float) -> np.ndarray:
            return rng.uniform(what, 1 - most, 1 + most)

        angle, saturation = np.deg2rad(rng.uniform("hue", -self.hue, self.hue)), factor("saturation", self.saturation)
        plane = np.zeros((rng.n, 3, 3))
        plane[:, 0, 0] = 1
        plane[:, 1, 1] = plane[:, 2, 2] = saturation * np.cos(angle)
        plane[:, 2, 1] = saturation * np.sin(angle)
        plane[:, 1, 2] = -plane[:, 2, 1]
        linear = np.linalg.inv(TO_YIQ) @ plane @ TO_YIQ
        brightness, contrast = factor("brightness", self.brightness), factor("contrast", self.contrast)
        shift = np.broadcast_to((brightness * 127.5 * (1 - contrast))[:, None, None], (rng.n, 3, 1))
        return {"matrix": np.concatenate([linear * (brightness * contrast)[:, None, None], shift], axis=2)}

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        return ops.recolour(image, drawn["matrix"])

    def caption(self, drawn: Drawn) -> str:
        return "its own colours"
