"""MoCo: find the other view of a photo among many earlier views of other photos."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from pipeline.tasks.views import ViewTask


class Moco(ViewTask):
    """The network learns to find, for a view of a photo, another view of it among many earlier views of other photos.

    The defaults are those of version 2. For version 3 set `saturation: 0.2`, `blur: [1, 0.1]`, `solarise: [0, 0.2]`, and the
    objective `{name: moco, version: 3}`. Differences from the paper: colours are rounded and clipped once, hue is turned in YIQ;
    the blur's width is in pixels, whatever the size of the view.
    """

    name: ClassVar[str] = "moco"
    source: ClassVar[str] = (
        "He et al., Momentum contrast for unsupervised visual representation learning, CVPR 2020; "
        "Chen et al., Improved baselines with momentum contrastive learning, arXiv 2020"
    )
    default_objective: ClassVar[str | None] = "moco"

    scale: tuple[float, float] = Field((0.2, 1.0), description="Share of the photo's area that a view covers.")
