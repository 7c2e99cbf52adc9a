"""SimSiam: predict from one view the features of another, without comparing with other photos."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from pipeline.tasks.views import ViewTask


class Simsiam(ViewTask):
    """The network predicts from each of two views of a photo the features of the other, without comparing with other photos.

    The views are those of MoCo v2. Differences from the paper: colours are rounded and clipped once, hue is turned in YIQ; the
    blur's width is in pixels, whatever the size of the view.
    """

    name: ClassVar[str] = "simsiam"
    source: ClassVar[str] = "Chen and He, Exploring simple siamese representation learning, CVPR 2021"
    default_objective: ClassVar[str | None] = "simsiam"

    scale: tuple[float, float] = Field((0.2, 1.0), description="Share of the photo's area that a view covers.")
