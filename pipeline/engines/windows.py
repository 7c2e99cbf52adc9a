"""Draws windows: which part of a photo a crop or a view shows, and whether it is mirrored."""

from __future__ import annotations

import numpy as np

from pipeline.draws import Stream

_TRIES = 10


def random_windows(
    rng: Stream,
    heights: np.ndarray,
    widths: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    prefix: str = "",
) -> np.ndarray:
    """Draw random resized crops, as torchvision's `RandomResizedCrop` does: ten tries, then the centre at an allowed ratio.

    Args:
        rng: the samples' stream for cropping.
        heights: (n,) photo heights, upright.
        widths: (n,) photo widths.
        scale: least and greatest share of the photo's area.
        ratio: least and greatest width over height.
        prefix: prefix of the names under which numbers are drawn.

    Returns:
        int32 (n, 4): top, left, height, width, inside the photo.
    """
    (least, most), (narrow, wide) = scale, np.log(ratio)
    area = rng.uniform(f"{prefix}area", least, most, shape=(_TRIES,)) * (heights * widths)[:, None]
    shape = np.exp(rng.uniform(f"{prefix}ratio", narrow, wide, shape=(_TRIES,)))
    height, width = np.rint(np.sqrt(area / shape)).astype(np.int64), np.rint(np.sqrt(area * shape)).astype(np.int64)
    fits = (height >= 1) & (width >= 1) & (height <= heights[:, None]) & (width <= widths[:, None])
    pick = np.arange(len(heights)), fits.argmax(axis=1)
    h, w = height[pick], width[pick]
    lost = ~fits.any(axis=1)
    bounded = np.clip(widths / heights, *ratio)
    h = np.where(lost, np.clip(np.rint(np.minimum(heights, widths / bounded)), 1, heights), h).astype(np.int64)
    w = np.where(lost, np.clip(np.rint(np.minimum(widths, heights * bounded)), 1, widths), w).astype(np.int64)
    top = np.where(lost, (heights - h) // 2, rng.integers(f"{prefix}top", heights - h + 1))
    left = np.where(lost, (widths - w) // 2, rng.integers(f"{prefix}left", widths - w + 1))
    return np.stack([top, left, h, w], axis=1).astype(np.int32)


def center_windows(heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The largest centred square of each photo, int32 (n, 4), as in `random_windows`."""
    side = np.minimum(heights, widths)
    return np.stack([(heights - side) // 2, (widths - side) // 2, side, side], axis=1).astype(np.int32)


def whole_windows(heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """All of each photo, int32 (n, 4), as in `random_windows`."""
    zeros = np.zeros_like(heights)
    return np.stack([zeros, zeros, heights, widths], axis=1).astype(np.int32)


def flips(rng: Stream, probability: float = 0.5, prefix: str = "") -> np.ndarray:
    """Draw whether each sample is mirrored left to right, bool (n,)."""
    return rng.uniform(f"{prefix}flip") < probability
