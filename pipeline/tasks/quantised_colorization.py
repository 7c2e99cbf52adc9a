"""Quantised colorization: predict the colours of a crop from its brightness, as classes."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from pipeline.draws import Stream
from pipeline.engines.vocabulary import Ops
from pipeline.labels import Colours
from pipeline.tasks.base import Drawn, Task

_SPREAD = 0.06 * 255 / 6**0.5
"""The scale s, in levels, of a density exp(-distance / s) of chroma around grey. Its root mean square distance from grey is s
times the root of 6; on ImageNet photos that distance was measured as 0.06 of the range."""


class QuantisedColorization(Task):
    """The network sees only the brightness; the label is the colour at each place, as one of several classes.

    The classes are the squares of a grid in the chroma plane. With classes in place of amounts, a network that finds two colours
    possible does not answer with the grey between them. Rare colours weigh more than frequent ones; without that, grey would be
    right most often.
    """

    name: ClassVar[str] = "quantised_colorization"
    source: ClassVar[str] = "Zhang et al., Colorful image colorization, ECCV 2016"

    step: int = Field(24, ge=8, le=64, description="Side of the squares in the plane of chroma, levels of 255.")
    shares: tuple[float, ...] | None = Field(
        None,
        description="How often each colour occurs in the corpus, as `pseudolabel colours` counts it; by default an estimate.",
    )

    def check(self, size: int) -> None:
        count = len(chroma_squares(self.step))
        if self.shares is not None and len(self.shares) != count:
            raise ValueError(f"{len(self.shares)} shares for the {count} colours of step {self.step}")
        if self.shares is not None and (min(self.shares) < 0 or sum(self.shares) <= 0):
            raise ValueError("shares are counts or parts of a whole: none below 0, and not all 0")
        if size < 8:
            raise ValueError(f"the label has a quarter of the resolution, and {size} pixels have too few for that")

    def label_kind(self) -> Colours:
        palette = chroma_squares(self.step)
        if self.shares is None:
            density = np.exp(-np.hypot(*np.array(palette).T) / _SPREAD)
            shares = tuple((density / density.sum()).tolist())
        else:
            shares = tuple(share / sum(self.shares) for share in self.shares)
        return Colours(palette=palette, shares=shares)

    def input_shape(self, size: int) -> tuple[int, ...]:
        return (size, size, 1)

    def draw(self, rng: Stream, size: int) -> Drawn:
        return {}

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        return ops.gray(image)

    def caption(self, drawn: Drawn) -> str:
        return f"which of {len(chroma_squares(self.step))} colours"


@cache
def chroma_squares(step: int) -> tuple[tuple[float, float], ...]:
    """Centres of the squares of side `step` in the plane of (Cb, Cr), levels around 0, that hold some RGB colour."""
    line = np.linspace(0, 255, 52)
    red, green, blue = (axis.ravel() for axis in np.meshgrid(line, line, line))
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    squares = np.rint(np.stack([(blue - luma) / 1.772, (red - luma) / 1.402], axis=1) / step).astype(int)
    return tuple((float(step * b), float(step * r)) for b, r in sorted(set(map(tuple, squares.tolist()))))
