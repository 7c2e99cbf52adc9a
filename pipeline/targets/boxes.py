"""Boxes around the objects of an image, from its `boxes.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.targets.base import BadTarget, Crops, Target

MEMBER = "boxes.json"
LEAST_SIDE = 1.0
"""Pixels of a crop: of a box that the crop cuts, less is no object any more."""

_ROUNDING = 1e-6  # pixels


@dataclass(frozen=True)
class ImageBoxes:
    """The boxes of one photo.

    Args:
        corners: float64 (k, 4): left, top, right, bottom in the upright photo, pixels.
        classes: int64 (k,): their classes.
        crowd: bool (k,): boxes around many objects, or around one that is hard to see: neither learnt nor judged.
    """

    corners: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray


@dataclass(frozen=True)
class BoxTarget(Target):
    """Boxes of classes, as three columns.

    They are `boxes`, float32 (n, most, 4): left, top, right, bottom in pixels of the crop; `box_class`, int64 (n, most), -1
    behind the last box; and `crowd`, bool (n, most), see `ImageBoxes`.

    Args:
        labels: label of each class number that boxes have; a box of another cannot be used.
        most: boxes of one image at most.
    """

    member = MEMBER
    whole = True
    labels: dict[int, int]
    most: int = 256

    def row_bytes(self, size: int) -> int:
        return 25 * self.most

    def read(self, body: bytes | memoryview, height: int, width: int) -> ImageBoxes:
        """The boxes with labels for classes; errors as of `Target.read`."""
        found = read_boxes(body, (height, width))
        if len(found.classes) > self.most:
            raise BadTarget(f"it has {len(found.classes)} boxes, and {self.most} are the most")
        labels = np.array([self.labels.get(number, -1) for number in found.classes.tolist()], np.int64)
        if (labels < 0).any():
            raise BadTarget(f"it has a box of class {found.classes[labels.argmin()]}, and no class has that number")
        return ImageBoxes(found.corners, labels, found.crowd)

    def columns(self, found: Sequence[ImageBoxes | None], crops: Crops) -> dict[str, np.ndarray]:
        n = len(found)
        boxes, classes = np.zeros((n, self.most, 4), np.float32), np.full((n, self.most), -1, np.int64)
        crowd = np.zeros((n, self.most), bool)
        for i, of_image in enumerate(found):
            if of_image is not None:
                moved, kept = move(of_image.corners, crops.windows[i], bool(crops.mirror[i]), crops.size)
                boxes[i, : len(moved)], classes[i, : len(moved)] = moved, of_image.classes[kept]
                crowd[i, : len(moved)] = of_image.crowd[kept]
        return {"boxes": boxes, "box_class": classes, "crowd": crowd}


def move(corners: np.ndarray, window: np.ndarray, mirror: bool, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Move boxes into a crop and clip them there.

    Args:
        corners: float (k, 4), as of `ImageBoxes`.
        window: (4,): top, left, height, width.
        mirror: whether the crop is mirrored left to right.
        size: side of the crop, pixels.

    Returns:
        float64 (m, 4): the boxes of which at least `LEAST_SIDE` is in the crop each way; and which of the k they are, int64 (m,).
    """
    top, left, height, width = np.asarray(window, np.float64)
    scale = np.array([size / width, size / height] * 2)
    moved = ((corners - [left, top, left, top]) * scale).clip(0, size)
    if mirror:
        moved[:, [0, 2]] = size - moved[:, [2, 0]]
    kept = np.flatnonzero((moved[:, 2:] - moved[:, :2] >= LEAST_SIDE - _ROUNDING).all(axis=1))
    return moved[kept], kept


def boxes_json(height: int | None, width: int | None, boxes: Iterable[dict[str, Any]]) -> bytes:
    """The member `boxes.json` of a photo of that height and width.

    Args:
        height: of the upright photo, pixels; None where it is not known.
        width: likewise.
        boxes: with COCO's fields `bbox` (left, top, width, height) and `category_id`, perhaps `iscrowd`; and `category`, the
            class's name, for people.
    """
    return json.dumps({"width": width, "height": height, "annotations": list(boxes)}).encode()


def read_boxes(body: bytes | memoryview, size: tuple[int, int] | None = None) -> ImageBoxes:
    """Read and check `boxes.json`: an object as `boxes_json` writes it, or a list of COCO's annotations.

    Args:
        body: the file.
        size: height and width of the upright photo; None takes those in the file.

    Raises:
        BadTarget: it is no such file, is of a photo of another size, or has a box without area or outside of the photo.
    """
    try:
        content = json.loads(bytes(body))
    except (ValueError, RecursionError):
        raise BadTarget(f"its {MEMBER} is no JSON") from None
    about = content if isinstance(content, dict) else {"annotations": content}
    rows, given = about.get("annotations"), (about.get("height"), about.get("width"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadTarget(f"its {MEMBER} has no list of annotations")
    if size is not None and None not in given and given != size:
        raise BadTarget(f"its boxes are of an image of {given[1]}x{given[0]} pixels, and it has {size[1]}x{size[0]}")
    height, width = size or given
    found = [_box(row, number, height, width) for number, row in enumerate(rows, 1)]
    return ImageBoxes(
        corners=np.array([corners for corners, _, _ in found], np.float64).reshape(-1, 4),
        classes=np.array([number for _, number, _ in found], np.int64),
        crowd=np.array([crowd for _, _, crowd in found], bool),
    )


def degenerate(body: bytes | memoryview) -> int:
    """How many boxes of a `boxes.json` have four numbers and no area; 0 where it cannot be read."""
    try:
        content = json.loads(bytes(body))
    except (ValueError, RecursionError):
        return 0
    rows = content.get("annotations") if isinstance(content, dict) else content
    boxes = [row.get("bbox") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    whole = [box for box in boxes if isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))]
    return sum(min(box[2:]) <= 0 for box in whole)


def _box(row: dict[str, Any], number: int, height: Any, width: Any) -> tuple[tuple[float, ...], int, bool]:
    """Corners, class and whether it is a crowd; `number` counts the boxes of the photo from 1."""
    bbox, category = row.get("bbox"), row.get("category_id")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_finite(value) for value in bbox):
        raise BadTarget(f"the bbox of its box {number} is not four numbers")
    if not isinstance(category, int) or isinstance(category, bool) or abs(category) >= 2**31:
        raise BadTarget(f"its box {number} has no category_id that is a whole number")
    left, top, across, down = map(float, bbox)
    if across <= 0 or down <= 0:
        raise BadTarget(f"its box {number} has no area: it is {across:g} wide and {down:g} high")
    right, bottom = left + across, top + down
    if _is_finite(height) and _is_finite(width):
        if right <= 0 or bottom <= 0 or left >= width or top >= height:
            raise BadTarget(f"its box {number} lies outside of the image: from {left:g}, {top:g} to {right:g}, {bottom:g}")
        left, top, right, bottom = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    return (left, top, right, bottom), category, bool(row.get("iscrowd") or row.get("difficult"))


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 and math.isfinite(value)
