"""VICReg: do views agree, while features vary and repeat nothing?"""

from __future__ import annotations

from typing import ClassVar

from pipeline.tasks.byol import Byol


class Vicreg(Byol):
    """Two views of a photo are to be alike, while each feature keeps its variance and repeats no other feature.

    The views are those of BYOL. Differences: windows are resized bilinearly with antialiasing, the paper's bicubically; colours
    are rounded and clipped once, hue is turned in YIQ; the blur's width is in pixels, whatever the size of the view.
    """

    name: ClassVar[str] = "vicreg"
    source: ClassVar[str] = (
        "Bardes et al., VICReg: variance-invariance-covariance regularization for self-supervised learning, ICLR 2022"
    )
    default_objective: ClassVar[str | None] = "vicreg"
