"""The one crop that all tasks of a sample share: which window of the photo, and whether it is mirrored."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.draws import Stream
from pipeline.engines.base import Request, ViewWindows
from pipeline.engines.vocabulary import Windows

_TRIES = 10

# By EXIF orientation (0 unused): turn a quarter counter-clockwise, then mirror left and right, and top and bottom.
_TURN = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1], bool)
_MIRROR = np.array([[0, 0], [0, 0], [1, 0], [1, 1], [0, 1], [0, 1], [1, 1], [1, 0], [0, 0]], bool)


def random_windows(
    rng: Stream,
    heights: np.ndarray,
    widths: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    prefix: str = "",
) -> np.ndarray:
    """Random resized crops, drawn as torchvision's `RandomResizedCrop` does: ten tries, then the centre at an allowed ratio.

    Args:
        rng: the samples' stream for cropping.
        heights: (n,) photo heights, upright.
        widths: (n,) photo widths.
        scale: least and greatest share of the photo's area.
        ratio: least and greatest width over height.
        prefix: of the names under which numbers are drawn.

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
    """The largest centred square of each photo; int32 (n, 4) as above."""
    side = np.minimum(heights, widths)
    return np.stack([(heights - side) // 2, (widths - side) // 2, side, side], axis=1).astype(np.int32)


def flips(rng: Stream, probability: float = 0.5, prefix: str = "") -> np.ndarray:
    """Mirror left and right? bool (n,)."""
    return rng.uniform(f"{prefix}flip") < probability


def stored(
    windows: np.ndarray, heights: np.ndarray, widths: np.ndarray, orientations: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where windows of upright photos lie in the photos as they are stored, and what sets their pixels upright.

    Decoders are told to leave the orientation alone: they do not all agree on what a damaged tag means, nor on who is to act on
    it, and a crop turned after its resize to a small square costs next to nothing.

    Args:
        windows: int32 (n, 4), as above.
        heights: (n,) photo heights, upright.
        widths: (n,) photo widths, upright.
        orientations: (n,) EXIF orientations, 1 to 8.

    Returns:
        int32 (n, 4): the windows in the stored photos; bool (n,): turn the crop a quarter counter-clockwise; bool (n, 2): then
        mirror it left and right, and top and bottom.
    """
    turn, mirror = _TURN[orientations], _MIRROR[orientations]
    top, left, height, width = windows.T
    left = np.where(mirror[:, 0], widths - left - width, left)
    top = np.where(mirror[:, 1], heights - top - height, top)
    aside = np.stack([left, heights - top - height, width, height], axis=1)
    straight = np.stack([top, left, height, width], axis=1)
    return np.where(turn[:, None], aside, straight).astype(np.int32), turn, mirror


def add_views(
    request: Request,
    windows: Mapping[str, Windows],
    heights: np.ndarray,
    widths: np.ndarray,
    orientations: np.ndarray,
    crop: bool = True,
) -> None:
    """Have the windows of tasks cut out of one decode of each sample's first image.

    Args:
        request: of the crops alone; it is changed.
        windows: of n samples, by task name.
        heights: (n,), as above; `widths` and `orientations` likewise.
        crop: whether the crops are wanted too.
    """
    for name, drawn in windows.items():
        placed = [stored(drawn.boxes[:, k], heights, widths, orientations) for k in range(drawn.boxes.shape[1])]
        mirror = np.stack([upend for _, _, upend in placed], axis=1)
        mirror[:, :, 0] ^= drawn.mirror
        request.views[name] = ViewWindows(np.stack([boxes for boxes, _, _ in placed], axis=1), mirror)
    first, crops = slice(None, None, request.frames), request.windows
    boxes = [*([crops[first, None]] if crop else []), *(views.windows for views in request.views.values())]
    regions = _bounding_boxes(np.concatenate(boxes, axis=1))
    request.windows = crops.copy()
    request.windows[first] = regions
    request.crops = _within(crops[:, None], request.windows)[:, 0] if crop else None
    for views in request.views.values():
        views.windows = _within(views.windows, regions)


def _bounding_boxes(boxes: np.ndarray) -> np.ndarray:
    """The smallest window that holds all of some: (n, k, 4) -> (n, 4)."""
    start, end = boxes[..., :2].min(axis=1), (boxes[..., :2] + boxes[..., 2:]).max(axis=1)
    return np.concatenate([start, end - start], axis=1)


def _within(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Windows (n, k, 4) as seen from the first pixel of the regions (n, 4) that hold them."""
    return boxes - np.concatenate([regions[:, :2], np.zeros_like(regions[:, :2])], axis=1)[:, None]
