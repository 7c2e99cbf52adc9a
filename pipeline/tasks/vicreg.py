"""VICReg: make features agree over two views of a photo, while each varies and none correlates with another."""

from __future__ import annotations

from typing import ClassVar

from pipeline.tasks.byol import Byol


class Vicreg(Byol):
    """The network learns similar features for two views of a photo; each feature keeps its variance and correlates with no other.

    The views are those of BYOL. Differences from the paper: windows are resized bilinearly with antialiasing, the paper's
    bicubically; colours are rounded and clipped once, hue is turned in YIQ; the blur's width is in pixels, whatever the size of
    the view.
    """

    name: ClassVar[str] = "vicreg"
    source: ClassVar[str] = (
        "Bardes et al., VICReg: variance-invariance-covariance regularization for self-supervised learning, ICLR 2022"
    )
    default_objective: ClassVar[str | None] = "vicreg"
