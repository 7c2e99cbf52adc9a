"""The base class of tasks whose input is several views of a photo, each with its own window, colours and sharpness."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BeforeValidator, Field, field_validator

from pipeline.draws import Stream
from pipeline.engines.vocabulary import Ops, Windows
from pipeline.engines.windows import flips, random_windows
from pipeline.labels import Views
from pipeline.tasks.base import Drawn, Task
from pipeline.tasks.jitter import jitter_maps

_NEVER = 256  # no value of a pixel is as large
UNCHANGED: Drawn = {"matrix": np.eye(3), "of_mean": 0.0, "sigma": 0.0, "threshold": _NEVER}
"""What is drawn of a view whose pixels stay as they are."""
_SHARE_OF_SMALL = 3 / 7  # 96 of 224 pixels


def _one_or_several(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) else value


PerView = Annotated[tuple[float, ...], BeforeValidator(_one_or_several)]
"""A number for all views, or a list: one for each view, the last for all further views."""


class ViewTask(Task):
    """The input is several views of one photo, cut from one decode, each with its own window, mirroring, colours and sharpness.

    The names of all drawn numbers contain the view's number, so that adding a view changes none of the others.
    """

    mirror_together: ClassVar[bool] = False
    """Whether the views of a sample are mirrored all or none."""

    views: int = Field(2, ge=2, le=8, description="Number of views of `image.size` pixels.")
    scale: tuple[float, float] = Field((0.08, 1.0), description="Share of the photo's area that a view covers.")
    ratio: tuple[float, float] = Field((3 / 4, 4 / 3), description="Width over height of a view before it is made square.")
    small_views: int = Field(0, ge=0, le=16, description="Number of further, small views.")
    small_scale: tuple[float, float] = Field((0.05, 0.14), description="Share of the photo's area that a small view covers.")
    small_size: int | None = Field(
        None, ge=8, le=2048, description="Side of a small view, pixels; three sevenths of `image.size` if not set."
    )
    mirror: float = Field(0.5, ge=0, le=1, description="Probability that a view is mirrored left to right.")
    jitter: float = Field(0.8, ge=0, le=1, description="Probability that a view's colours are changed.")
    brightness: float = Field(0.4, ge=0, description="Greatest change of the brightness, as a share of it.")
    contrast: float = Field(0.4, ge=0, description="Greatest change of the contrast, as a share of it.")
    saturation: float = Field(0.4, ge=0, description="Greatest change of the saturation, as a share of it.")
    hue: float = Field(0.1, ge=0, le=0.5, description="Greatest change of the hue to either side, as a share of a full turn.")
    grey: float = Field(0.2, ge=0, le=1, description="Probability that a view loses its colour.")
    blur: PerView = Field(
        (0.5,), min_length=1, description="Probability that a view is blurred; a list: for each view, the last for all further."
    )
    sigma: tuple[float, float] = Field((0.1, 2.0), description="Least and greatest standard deviation of the blur, pixels.")
    solarise: PerView = Field(
        (0.0,),
        min_length=1,
        description="Probability that the bright half of the values is inverted; a list as for `blur`.",
    )

    @field_validator("blur", "solarise")
    @classmethod
    def _probabilities(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= probability <= 1 for probability in value):
            raise ValueError("probabilities lie between 0 and 1")
        return value

    @field_validator("scale", "small_scale", "ratio", "sigma")
    @classmethod
    def _ranges(cls, value: tuple[float, float], info: Any) -> tuple[float, float]:
        most = 1 if info.field_name.endswith("scale") else np.inf
        if not 0 < value[0] <= value[1] <= most:
            raise ValueError(f"needs 0 < least <= most{' <= 1' if most == 1 else ''}")
        return value

    def label_kind(self) -> Views:
        return Views(self.views, self.small_views)

    def input_shape(self, size: int) -> tuple[int, ...]:
        return (self.views, size, size, 3)

    def small_side(self, size: int) -> int:
        """Side of a small view, pixels."""
        return self.small_size or max(8, round(_SHARE_OF_SMALL * size))

    def view_columns(self, size: int) -> dict[str, tuple[int, int]]:
        small = {"small": (self.small_views, self.small_side(size))} if self.small_views else {}
        return {"input": (self.views, size), **small}

    def windows(self, rng: Stream, heights: np.ndarray, widths: np.ndarray, size: int) -> Windows:
        scales = [self.scale] * self.views + [self.small_scale] * self.small_views
        boxes = [random_windows(rng, heights, widths, scale, self.ratio, f"v{k}.") for k, scale in enumerate(scales)]
        mirror = [flips(rng, self.mirror, f"v{0 if self.mirror_together else k}.") for k in range(len(scales))]
        return Windows(np.stack(boxes, axis=1), np.stack(mirror, axis=1))

    def draw(self, rng: Stream, size: int) -> Drawn:
        views = [self._draw_view(rng, k) for k in range(self.views + self.small_views)]
        return {name: np.stack([view[name] for view in views], axis=1) for name in views[0]}

    def _draw_view(self, rng: Stream, k: int) -> Drawn:
        def chance(what: str, probability: float) -> np.ndarray:
            return rng.uniform(f"v{k}.{what}") < probability

        changed = chance("jitter", self.jitter)

        def amount(what: str, least: float, most: float, unchanged: float) -> np.ndarray:
            return np.where(changed, rng.uniform(f"v{k}.{what}", least, most), unchanged)

        factors = {
            what: amount(what, max(0, 1 - most), 1 + most, 1)
            for what, most in {"brightness": self.brightness, "contrast": self.contrast, "saturation": self.saturation}.items()
        }
        factors["saturation"] = np.where(chance("grey", self.grey), 0, factors["saturation"])
        matrix, of_mean = jitter_maps(**factors, hue=2 * np.pi * amount("hue", -self.hue, self.hue, 0))
        # The exact identity for unchanged views, so that rounding changes no pixel.
        matrix[(factors["saturation"] == 1) & ~changed] = np.eye(3)
        blurred, solarised = (chance(what, _of_view(getattr(self, what), k)) for what in ("blur", "solarise"))
        return {
            "matrix": matrix,
            "of_mean": of_mean,
            "sigma": np.where(blurred, rng.uniform(f"v{k}.sigma", *self.sigma), 0),
            "threshold": np.where(solarised, _NEVER // 2, _NEVER),
        }

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        if self.jitter or self.grey:
            image = ops.jitter(image, drawn["matrix"], drawn["of_mean"])
        if any(self.blur):
            image = ops.blur(image, drawn["sigma"])
        return ops.solarise(image, drawn["threshold"]) if any(self.solarise) else image

    def caption(self, drawn: Drawn) -> str:
        return "the same photo" if self.views + self.small_views > 1 else "the same photo's parts"


def _of_view(values: tuple[float, ...], k: int) -> float:
    return values[min(k, len(values) - 1)]
