"""Denoising: predict the clean crop from a noisy one."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from pipeline.draws import Stream
from pipeline.engines.noise_field import REACH
from pipeline.engines.vocabulary import Ops
from pipeline.labels import Pixels
from pipeline.tasks.base import Drawn, Task


class Denoising(Task):
    """Noise of drawn strength is added to the image; the label is the clean crop.

    A share of the images gets shot noise, whose variance grows with the light, the others Gaussian noise, which is the same
    everywhere. Shot noise is approximated by a normal distribution of the same mean and variance (Foi et al. 2008).
    """

    name: ClassVar[str] = "denoising"
    source: ClassVar[str] = "Vincent et al., Extracting and composing robust features with denoising autoencoders, ICML 2008"

    level: tuple[float, float] = Field(
        (10.0, 50.0), description="Least and greatest standard deviation, in levels of 255; for shot noise the one at mid-grey."
    )
    shot: float = Field(0.5, ge=0, le=1, description="Share of the images whose noise is shot noise.")

    @model_validator(mode="after")
    def _ranges(self) -> Denoising:
        if not 1 <= self.level[0] <= self.level[1] <= 255:
            raise ValueError(f"level {list(self.level)}: needs 1 <= least <= greatest <= 255; weaker noise would be rounded away")
        return self

    def label_kind(self) -> Pixels:
        return Pixels(target="image", spoilt=True)

    def input_shape(self, size: int) -> tuple[int, ...]:
        return (size, size, 3)

    def draw(self, rng: Stream, size: int) -> Drawn:
        level, shot = rng.uniform("level", *self.level), rng.uniform("shot") < self.shot
        return {
            "corners": rng.integers("corners", REACH + 1, shape=(2, 2)),
            "gain": np.where(shot, level**2 / 128, 0.0),
            "level": np.where(shot, 0.0, level),
        }

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        return ops.noise(image, drawn["corners"], drawn["gain"], drawn["level"])

    def caption(self, drawn: Drawn) -> str:
        if drawn["gain"]:
            return f"without its shot noise, {(128 * drawn['gain']) ** 0.5:.0f} levels at mid-grey"
        return f"without its noise of {drawn['level']:.0f} levels"
