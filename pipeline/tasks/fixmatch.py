"""FixMatch: what the network is sure of in a weakly changed view is the label of a strongly changed one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, field_validator

from pipeline.draws import Stream
from pipeline.engines.vocabulary import Ops, Windows
from pipeline.engines.windows import flips, random_windows
from pipeline.labels import LabelledViews
from pipeline.tasks.base import Drawn
from pipeline.tasks.supervised import CLASSES, checked_labels
from pipeline.tasks.views import UNCHANGED, ViewTask

_GREY = (124, 116, 104)


class Fixmatch(ViewTask):
    """The network learns the known classes of images, and for the others its own answer, where that is certain.

    The first view is cut and mirrored only; the second is changed in place, colour and sharpness, and a box of it is covered. The
    class of an image is its own, where the shard has one and `corpus.labelled` does not hide it. Differences from the paper: the
    strong changes are those of views here, not RandAugment; the network is tested as it is, and not the mean of its weights; an
    image whose class is known does not learn from the network's own answer too.
    """

    name: ClassVar[str] = "fixmatch"
    source: ClassVar[str] = (
        "Sohn et al., FixMatch: simplifying semi-supervised learning with consistency and confidence, NeurIPS 2020"
    )
    default_objective: ClassVar[str | None] = "fixmatch"
    learns_classes: ClassVar[bool] = True

    classes: int = CLASSES
    views: int = Field(2, ge=2, le=2, description="Always two: the weak view, then the strong one.")
    small_views: int = Field(0, ge=0, le=0, description="None.")
    weak_scale: tuple[float, float] = Field((0.75, 1.0), description="Share of the photo's area that the weak view covers.")
    scale: tuple[float, float] = Field((0.2, 1.0), description="Share of the photo's area that the strong view covers.")
    cover: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Greatest side of the grey square that covers a part of the strong view, as a share of its side.",
    )

    @field_validator("weak_scale")
    @classmethod
    def _weak_range(cls, value: tuple[float, float], info: Any) -> tuple[float, float]:
        return cls._ranges(value, info)

    def label_kind(self) -> LabelledViews:
        return LabelledViews(self.views, classes=self.classes)

    def windows(self, rng: Stream, heights: np.ndarray, widths: np.ndarray, size: int) -> Windows:
        scales = (self.weak_scale, self.scale)
        boxes = [random_windows(rng, heights, widths, scale, self.ratio, f"v{k}.") for k, scale in enumerate(scales)]
        return Windows(np.stack(boxes, axis=1), np.stack([flips(rng, self.mirror, f"v{k}.") for k in range(2)], axis=1))

    def draw(self, rng: Stream, size: int) -> Drawn:
        drawn = super().draw(rng, size)
        for name, value in UNCHANGED.items():
            drawn[name][:, 0] = value
        side = np.rint(rng.uniform("v1.cover", 0, self.cover) * size).astype(np.int64)
        top, left = (rng.integers(f"v1.{what}", size - side + 1) for what in ("cover top", "cover left"))
        box = np.stack([top, left, side, side], axis=1)[:, None]
        return {**drawn, "boxes": np.stack([np.zeros_like(box), box], axis=1)}

    def given(self, known: Mapping[str, np.ndarray]) -> Drawn:
        checked_labels(known["class"], self.classes)  # the objective reads the column itself
        return {}

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        changed = super().render(ops, image, drawn)
        return ops.erase(changed, drawn["boxes"], _GREY) if self.cover else changed

    def caption(self, drawn: Drawn) -> str:
        return "the class of the weak view"
