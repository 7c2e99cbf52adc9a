"""Barlow Twins: make each feature agree over two views of a photo, and uncorrelated with all other features."""

from __future__ import annotations

from typing import ClassVar

from pipeline.tasks.byol import Byol


class BarlowTwins(Byol):
    """The network learns features that agree over two views of a photo and do not correlate with each other.

    The views are those of BYOL. Differences from the paper: windows are resized bilinearly with antialiasing, the paper's
    bicubically; colours are rounded and clipped once, hue is turned in YIQ; the blur's width is in pixels, whatever the size of
    the view.
    """

    name: ClassVar[str] = "barlow_twins"
    source: ClassVar[str] = "Zbontar et al., Barlow Twins: self-supervised learning via redundancy reduction, ICML 2021"
    default_objective: ClassVar[str | None] = "barlow_twins"
