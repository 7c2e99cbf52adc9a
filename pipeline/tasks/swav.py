"""SwAV: predict from one view of a photo the cluster of another."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from pipeline.tasks.views import ViewTask


class Swav(ViewTask):
    """The network predicts from each of two large and six small views of a photo the clusters of the large ones.

    Windows are resized bilinearly with antialiasing, as in the paper's code. Differences from it: colours are rounded and clipped
    once, hue is turned in YIQ; the blur's width is in pixels, whatever the size of the view. Small views have 96 pixels where
    `image.size` is 224.
    """

    name: ClassVar[str] = "swav"
    source: ClassVar[str] = (
        "Caron et al., Unsupervised learning of visual features by contrasting cluster assignments, NeurIPS 2020"
    )
    default_objective: ClassVar[str | None] = "swav"

    scale: tuple[float, float] = Field((0.14, 1.0), description="Share of the photo's area that a view covers.")
    small_views: int = Field(6, ge=0, le=16, description="Number of further, small views.")
    brightness: float = Field(0.8, ge=0, description="Greatest change of the brightness, as a share of it.")
    contrast: float = Field(0.8, ge=0, description="Greatest change of the contrast, as a share of it.")
    saturation: float = Field(0.8, ge=0, description="Greatest change of the saturation, as a share of it.")
    hue: float = Field(0.2, ge=0, le=0.5, description="Greatest change of the hue to either side, as a share of a full turn.")
