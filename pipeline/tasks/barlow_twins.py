"""Barlow Twins: does each feature agree over views, and repeat no other feature?"""

from __future__ import annotations

from typing import ClassVar

from pipeline.tasks.byol import Byol


class BarlowTwins(Byol):
    """Two views of a photo: each feature is to agree over the views, and to say nothing that another feature says.

    The views are those of BYOL. Differences: windows are resized bilinearly with antialiasing, the paper's bicubically; colours
    are rounded and clipped once, hue is turned in YIQ; the blur's width is in pixels, whatever the size of the view.
    """

    name: ClassVar[str] = "barlow_twins"
    source: ClassVar[str] = "Zbontar et al., Barlow Twins: self-supervised learning via redundancy reduction, ICML 2021"
    default_objective: ClassVar[str | None] = "barlow_twins"
