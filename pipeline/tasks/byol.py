"""BYOL: predict from one view the features that a slowly moving copy of the network computes for another."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from pipeline.tasks.views import PerView, ViewTask


class Byol(ViewTask):
    """The network predicts from one view of a photo the features that a slowly moving copy of it computes for another view.

    The first view is always blurred; the second is blurred seldom and solarised sometimes. Differences from the paper: windows
    are resized bilinearly with antialiasing, the paper's bicubically; colours are rounded and clipped once, hue is turned in YIQ;
    the blur's width is in pixels, whatever the size of the view.
    """

    name: ClassVar[str] = "byol"
    source: ClassVar[str] = "Grill et al., Bootstrap your own latent: a new approach to self-supervised learning, NeurIPS 2020"
    default_objective: ClassVar[str | None] = "byol"

    saturation: float = Field(0.2, ge=0, description="Greatest change of the saturation, as a share of it.")
    blur: PerView = Field(
        (1.0, 0.1),
        min_length=1,
        description="Probability that a view is blurred; a list: for each view, the last for all further.",
    )
    solarise: PerView = Field(
        (0.0, 0.2),
        min_length=1,
        description="Probability that the bright half of the values is inverted; a list as for `blur`.",
    )
