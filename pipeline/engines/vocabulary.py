"""The pixel vocabulary: the few words in which every task says what it does to an image.

Each engine implements all of them (`cpu.CpuOps` on batches of numpy arrays, `dali.DaliOps` on graph nodes), and the contract test
holds both against plain numpy. Images are uint8 RGB of the recipe's size; what was drawn comes as arrays whose first axis is the
batch.
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
"""What a task drew for n samples: arrays whose first axis is n. `label` and `mask` become columns of the batch."""


@dataclass
class Windows:
    """The windows that a task cuts from n photos, v from each.

    Args:
        boxes: int32 (n, v, 4): top, left, height, width in the upright photo.
        mirror: bool (n, v): mirror the view left and right.
    """

    boxes: np.ndarray
    mirror: np.ndarray


class Ops(Protocol):
    """What a task can ask of an engine."""

    size: int
    """Side of the square crop, pixels."""

    def rotate90(self, image: Any, turns: Any) -> Any:
        """Turn counter-clockwise by `turns` (n,) quarter turns; pixels are moved, never mixed. (h, w, 3) -> (h, w, 3)."""

    def erase(self, image: Any, boxes: Any, fill: tuple[int, int, int]) -> Any:
        """Paint boxes (n, m, 4) of (top, left, height, width) in a constant colour. (h, w, 3) -> (h, w, 3)."""

    def gray(self, image: Any) -> Any:
        """Brightness, 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), rounded. (h, w, 3) -> (h, w, 1)."""

    def drop_colour(self, image: Any, where: Any) -> Any:
        """Where `where` (n,) holds, all three channels become the brightness. (h, w, 3) -> (h, w, 3)."""

    def patches(self, image: Any, corners: Any, side: int, count: int) -> Any:
        """`count` square patches, their top left corners, (y, x), at `corners` (n, count, 2).

        (h, w, 3) -> (count, side, side, 3).
        """

    def noise(self, image: Any, corners: Any, gain: Any, level: Any) -> Any:
        """Add normal noise of variance `gain` (n,) x pixel + `level` (n,) squared, levels of 0..255; rounded, clipped.

        The model of sensor noise of Foi et al. 2008: `gain` is shot noise, `level` noise that does not depend on the light. The
        numbers are the sum of two cuts out of `pipeline.engines.noise_field.normal_field`, their top left corners, (y, x),
        at `corners` (n, 2, 2), divided by the root of two. (h, w, c) -> (h, w, c) with sides of at most the crop's.
        """

    def blur(self, image: Any, sigma: Any) -> Any:
        """Gaussian blur of standard deviation `sigma` (n,) in pixels, cut off at ceil(3 sigma); 0 leaves the image as it is.

        Beyond the border the image is mirrored, its outermost pixel not repeated. (h, w, 3) -> (h, w, 3).
        """

    def recolour(self, image: Any, matrix: Any) -> Any:
        """Each pixel (r, g, b) becomes `matrix` (n, 3, 4) times (r, g, b, 1), rounded, clipped. (h, w, 3) -> (h, w, 3)."""

    def reduce(self, image: Any, factor: int) -> Any:
        """Mean of squares of factor x factor pixels, halves rounded up; the sides are multiples of it.

        (h, w, 3) -> (h / factor, w / factor, 3).
        """

    def affine(self, image: Any, matrix: Any, side: int) -> Any:
        """The pixel at (x, y) becomes what the image shows at `matrix` (n, 2, 3) times (x, y, 1), bilinearly interpolated.

        Pixel centres lie at halves: the first pixel's at (0.5, 0.5). Beyond the border the outermost pixel is repeated.
        (h, w, 3) -> (side, side, 3).
        """

    def jitter(self, image: Any, matrix: Any, of_mean: Any) -> Any:
        """Each pixel (r, g, b) becomes `matrix` (n, 3, 3) times it plus `of_mean` (n,) times the image's mean brightness.

        Brightness as in `gray`, not rounded; the result is rounded, clipped. (h, w, 3) -> (h, w, 3).
        """

    def solarise(self, image: Any, threshold: Any) -> Any:
        """Values of at least `threshold` (n,) become 255 minus themselves; 256 leaves the image. (h, w, 3) -> (h, w, 3)."""

    def paste(self, image: Any, other: Any, mask: Any) -> Any:
        """Where `mask`, uint8 (n, h, w), is 1 the pixels of `other`, elsewhere those of the image. (h, w, 3) -> (h, w, 3)."""


class Renderable(Protocol):
    """What an engine needs of a task; `pipeline.tasks.Task` says what each of them does."""

    frames: ClassVar[int]

    def input_shape(self, size: int) -> tuple[int, ...]:
        """Shape of one input for crops of `size` pixels."""

    def view_columns(self, size: int) -> dict[str, tuple[int, int]]:
        """Columns of a task that cuts its own windows, each with its number of views and their side."""

    def windows(self, rng: Stream, heights: np.ndarray, widths: np.ndarray, size: int) -> Windows:
        """Draw the windows of a task that cuts its own."""

    def draw(self, rng: Stream, size: int) -> Drawn:
        """Draw the parameters of n samples."""

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        """Carry out what was drawn, in the words of `ops`."""
