"""SimCLR: make two views of a photo similar, and unlike all views of other photos."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from pipeline.tasks.views import ViewTask


class Simclr(ViewTask):
    """The network learns similar features for two views of a photo, and different ones for views of different photos.

    The defaults are the paper's for ImageNet, with colours changed at full strength; for CIFAR-10 the paper halves the changes of
    colour and leaves out the blur. Differences from the paper: windows are resized bilinearly with antialiasing, the paper's
    bicubically; colours are rounded and clipped once, hue is turned in YIQ; the blur's width is in pixels, whatever the size of
    the view.
    """

    name: ClassVar[str] = "simclr"
    source: ClassVar[str] = "Chen et al., A simple framework for contrastive learning of visual representations, ICML 2020"
    default_objective: ClassVar[str | None] = "simclr"

    brightness: float = Field(0.8, ge=0, description="Greatest change of the brightness, as a share of it.")
    contrast: float = Field(0.8, ge=0, description="Greatest change of the contrast, as a share of it.")
    saturation: float = Field(0.8, ge=0, description="Greatest change of the saturation, as a share of it.")
    hue: float = Field(0.2, ge=0, le=0.5, description="Greatest change of the hue to either side, as a share of a full turn.")
