"""Deep InfoMax: match the feature vector of a photo with the features of its parts."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from pipeline.tasks.views import PerView, ViewTask


class Dim(ViewTask):
    """The network matches the feature vector of a view with the features of its parts, against parts of other photos.

    The view's colours and sharpness are not changed. Differences from the paper, which trains on small whole photos: the view is
    a random window, and may be mirrored; `scale: [1, 1]` and `mirror: 0` show whole photos.
    """

    name: ClassVar[str] = "dim"
    source: ClassVar[str] = (
        "Hjelm et al., Learning deep representations by mutual information estimation and maximization, ICLR 2019"
    )
    default_objective: ClassVar[str | None] = "dim"

    views: int = Field(1, ge=1, le=8, description="Number of views of `image.size` pixels.")
    scale: tuple[float, float] = Field((0.2, 1.0), description="Share of the photo's area that a view covers.")
    jitter: float = Field(0.0, ge=0, le=1, description="Probability that a view's colours are changed.")
    grey: float = Field(0.0, ge=0, le=1, description="Probability that a view loses its colour.")
    blur: PerView = Field(
        (0.0,), min_length=1, description="Probability that a view is blurred; a list: for each view, the last for all further."
    )
