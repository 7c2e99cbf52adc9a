"""AMDIM: match features of one view of a photo, at several scales, with those of another view."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from pipeline.tasks.views import PerView, ViewTask


class Amdim(ViewTask):
    """The network matches features of one view of a photo, at several scales, with those of another, against other photos.

    Both views are mirrored, or none. The defaults are those of the paper's code for ImageNet at 128 pixels. Differences from it:
    windows are resized bilinearly with antialiasing, there bicubically; colours are rounded and clipped once, hue is turned in
    YIQ.
    """

    name: ClassVar[str] = "amdim"
    source: ClassVar[str] = "Bachman et al., Learning representations by maximizing mutual information across views, NeurIPS 2019"
    default_objective: ClassVar[str | None] = "amdim"
    mirror_together: ClassVar[bool] = True

    scale: tuple[float, float] = Field((0.3, 1.0), description="Share of the photo's area that a view covers.")
    ratio: tuple[float, float] = Field((0.7, 1.4), description="Width over height of a view before it is made square.")
    hue: float = Field(0.2, ge=0, le=0.5, description="Greatest change of the hue to either side, as a share of a full turn.")
    blur: PerView = Field(
        (0.0,), min_length=1, description="Probability that a view is blurred; a list: for each view, the last for all further."
    )
