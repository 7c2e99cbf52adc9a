"""Places the windows of upright photos in the photos as they are stored, and decides what is decoded of each photo for all."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.engines.base import Request, ViewWindows
from pipeline.engines.vocabulary import Windows

# By EXIF orientation (0 unused): turn a quarter counter-clockwise, then mirror left and right, and top and bottom.
_TURN = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1], bool)
_MIRROR = np.array([[0, 0], [0, 0], [1, 0], [1, 1], [0, 1], [0, 1], [1, 1], [1, 0], [0, 0]], bool)


def stored(
    windows: np.ndarray, heights: np.ndarray, widths: np.ndarray, orientations: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Convert windows of upright photos to windows of the stored photos, with the turn and the mirroring that set them upright.

    Decoders are told to ignore the orientation: they do not agree on what a damaged tag means, nor on who applies it. Turning a
    crop after its resize to a small square costs next to nothing.

    Args:
        windows: int32 (n, 4): top, left, height, width.
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
    turned = np.stack([left, heights - top - height, width, height], axis=1)
    straight = np.stack([top, left, height, width], axis=1)
    return np.where(turn[:, None], turned, straight).astype(np.int32), turn, mirror


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
