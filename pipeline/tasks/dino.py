"""DINO: predict from one view of a photo the output of a slowly moving teacher for another."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from pipeline.tasks.views import PerView, ViewTask


class Dino(ViewTask):
    """The network predicts from two large and eight small views of a photo a slowly moving teacher's output for the large ones.

    Colours are BYOL's; small views are blurred half of the time. The defaults are the paper's for a vision transformer; its
    ResNet-50 has `scale: [0.14, 1]` and `small_scale: [0.05, 0.14]`. Differences from the paper: windows are resized bilinearly
    with antialiasing, the paper's bicubically; colours are rounded and clipped once, hue is turned in YIQ; the blur's width is in
    pixels, whatever the size of the view. Small views have 96 pixels where `image.size` is 224.
    """

    name: ClassVar[str] = "dino"
    source: ClassVar[str] = "Caron et al., Emerging properties in self-supervised vision transformers, ICCV 2021"
    default_objective: ClassVar[str | None] = "dino"

    scale: tuple[float, float] = Field((0.4, 1.0), description="Share of the photo's area that a view covers.")
    small_views: int = Field(8, ge=0, le=16, description="Number of further, small views.")
    small_scale: tuple[float, float] = Field((0.05, 0.4), description="Share of the photo's area that a small view covers.")
    saturation: float = Field(0.2, ge=0, description="Greatest change of the saturation, as a share of it.")
    blur: PerView = Field(
        (1.0, 0.1, 0.5),
        min_length=1,
        description="Probability that a view is blurred; a list: for each view, the last for all further.",
    )
    solarise: PerView = Field(
        (0.0, 0.2, 0.0),
        min_length=1,
        description="Probability that the bright half of the values is inverted; a list as for `blur`.",
    )
