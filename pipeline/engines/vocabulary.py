"""The pixel operations of which every task is made.

Each engine implements all of them (`cpu.CpuOps` on batches of numpy arrays, `dali.DaliOps` on graph nodes), and a test compares
both with plain numpy. Images are uint8 RGB of the recipe's size; drawn parameters are arrays whose first axis is the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import numpy as np

    from pipeline.draws import Stream

BRIGHTNESS = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in the brightness (ITU-R BT.601)."""

Drawn = dict[str, Any]
"""The parameters that a task drew for n samples: arrays whose first axis is n. `label` and `mask` become batch columns."""


@dataclass
class Windows:
    """The windows that a task cuts from n photos, v from each.

    Args:
        boxes: int32 (n, v, 4): top, left, height, width in the upright photo.
        mirror: bool (n, v): whether to mirror the view left to right.
    """

    boxes: np.ndarray
    mirror: np.ndarray


class Ops(Protocol):
    """The operations that an engine offers to tasks."""

    size: int
    """Side of the square crop, pixels."""

    def rotate90(self, image: Any, turns: Any) -> Any:
        """Turn counter-clockwise by `turns` (n,) quarter turns, without interpolation. (h, w, 3) -> (h, w, 3)."""

    def erase(self, image: Any, boxes: Any, fill: tuple[int, int, int]) -> Any:
        """Paint boxes (n, m, 4) of (top, left, height, width) in a constant colour. (h, w, 3) -> (h, w, 3)."""

    def gray(self, image: Any) -> Any:
        """Compute the brightness, 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), rounded. (h, w, 3) -> (h, w, 1)."""

    def drop_colour(self, image: Any, where: Any) -> Any:
        """Set all channels of the images for which `where` (n,) is true to their brightness. (h, w, 3) -> (h, w, 3)."""

    def patches(self, image: Any, corners: Any, side: int, count: int) -> Any:
        """Cut out `count` square patches, whose top left corners, (y, x), are `corners` (n, count, 2).

        (h, w, 3) -> (count, side, side, 3).
        """

    def noise(self, image: Any, corners: Any, gain: Any, level: Any) -> Any:
        """Add normal noise of variance `gain` (n,) x pixel + `level` (n,) squared, in levels of 0..255; rounded and clipped.

        The model of sensor noise of Foi et al. 2008: `gain` is shot noise, `level` noise that does not depend on the light. The
        numbers are the sum of two cuts from `pipeline.engines.noise_field.normal_field`, whose top left corners, (y, x), are
        `corners` (n, 2, 2), divided by the root of two. (h, w, c) -> (h, w, c) with sides of at most the crop's.
        """

    def blur(self, image: Any, sigma: Any) -> Any:
        """Blur by a Gaussian of standard deviation `sigma` (n,), pixels, cut off at ceil(3 sigma); 0 leaves the image unchanged.

        Beyond the border the image is mirrored without repeating its outermost pixel. (h, w, 3) -> (h, w, 3).
        """

    def recolour(self, image: Any, matrix: Any) -> Any:
        """Map each pixel (r, g, b) to `matrix` (n, 3, 4) times (r, g, b, 1), rounded and clipped. (h, w, 3) -> (h, w, 3)."""

    def reduce(self, image: Any, factor: int) -> Any:
        """Average squares of factor x factor pixels, halves rounded up; the image's sides are multiples of `factor`.

        (h, w, 3) -> (h / factor, w / factor, 3).
        """

    def affine(self, image: Any, matrix: Any, side: int) -> Any:
        """Set the pixel at (x, y) to the image's value at `matrix` (n, 2, 3) times (x, y, 1), interpolated bilinearly.

        Pixel centres lie at halves: the first pixel's is (0.5, 0.5). Beyond the border the outermost pixel is repeated.
        (h, w, 3) -> (side, side, 3).
        """

    def jitter(self, image: Any, matrix: Any, of_mean: Any) -> Any:
        """Map each pixel (r, g, b) to `matrix` (n, 3, 3) times it, plus `of_mean` (n,) times the image's mean brightness.

        Brightness is as in `gray`, but not rounded; the result is rounded and clipped. (h, w, 3) -> (h, w, 3).
        """

    def solarise(self, image: Any, threshold: Any) -> Any:
        """Invert (255 - v) values v of at least `threshold` (n,); 256 leaves the image unchanged. (h, w, 3) -> (h, w, 3)."""

    def paste(self, image: Any, other: Any, mask: Any) -> Any:
        """Replace pixels by those of `other` where `mask`, uint8 (n, h, w), is 1. (h, w, 3) -> (h, w, 3)."""


class Renderable(Protocol):
    """The part of a task that an engine needs; `pipeline.tasks.Task` describes it."""

    frames: ClassVar[int]

    def input_shape(self, size: int) -> tuple[int, ...]:
        """Shape of one input for crops of `size` pixels."""

    def view_columns(self, size: int) -> dict[str, tuple[int, int]]:
        """Columns of a task that cuts its own windows, by name, each with its number of views and their side."""

    def windows(self, rng: Stream, heights: np.ndarray, widths: np.ndarray, size: int) -> Windows:
        """Draw the windows of a task that cuts its own."""

    def draw(self, rng: Stream, size: int) -> Drawn:
        """Draw the parameters of n samples."""

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        """Make the input from the image by the drawn parameters, with the operations of `ops`."""
