"""Average precision as COCO defines it, by faster-coco-eval, its standard error, and that of the best constant boxes."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from pipeline.errors import UserError, installing

THRESHOLDS = 10
"""IoUs from which a found box counts as the true one: 0.5, 0.55, ..., 0.95."""

_GROUPS = 20
_CANDIDATES = 256


@dataclass(frozen=True)
class BoxRows:
    """Boxes of n images, a row each.

    Args:
        image: int64 (m,): the image's number, from 0 to n - 1.
        corners: float64 (m, 4): left, top, right, bottom.
        classes: int64 (m,).
        scores: float64 (m,); 1 for true boxes.
        crowd: bool (m,): true boxes that do not count, and with them all found ones that lie in them.
    """

    image: np.ndarray
    corners: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    crowd: np.ndarray

    @classmethod
    def none(cls) -> BoxRows:
        """No boxes."""
        return cls.of(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.int64))

    @classmethod
    def of(cls, image: Any, corners: Any, classes: Any, scores: Any = None, crowd: Any = None) -> BoxRows:
        """Rows of arrays of any types; without scores they are 1, without crowd none is one."""
        n = len(image)
        return cls(
            np.asarray(image, np.int64),
            np.asarray(corners, np.float64).reshape(n, 4),
            np.asarray(classes, np.int64),
            np.ones(n) if scores is None else np.asarray(scores, np.float64),
            np.zeros(n, bool) if crowd is None else np.asarray(crowd, bool),
        )

    def __len__(self) -> int:
        return len(self.image)

    def __add__(self, other: BoxRows) -> BoxRows:
        """The rows of both."""
        return BoxRows(*(np.concatenate([getattr(self, each.name), getattr(other, each.name)]) for each in fields(self)))

    def take(self, rows: np.ndarray) -> BoxRows:
        """Some of the rows."""
        return BoxRows(*(getattr(self, each.name)[rows] for each in fields(self)))

    def renumbered(self, numbers: np.ndarray) -> BoxRows:
        """The same boxes with `numbers`, int64 (n,), as numbers of the n images, in their order."""
        image = numbers[self.image]
        return BoxRows(image, *(getattr(self, each.name) for each in fields(self)[1:])).take(np.argsort(image, kind="stable"))


def check_installed() -> None:
    """Raise `UserError` if faster-coco-eval is not there."""
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise UserError(
            f"downstream.problem: detection is judged by faster-coco-eval, which is not installed: {installing('detection')}"
        )


class Precisions:
    """The average precision of found boxes: the area under precision over recall (Lin et al., Microsoft COCO, ECCV 2014).

    Args:
        images: number of images.
        truth: their true boxes.
        found: the boxes that were found, at most 100 of a class in an image.
        classes: number of classes.

    Raises:
        UserError: faster-coco-eval is not installed, or no true box counts.
    """

    def __init__(self, images: int, truth: BoxRows, found: BoxRows, classes: int) -> None:
        check_installed()
        from faster_coco_eval import COCO

        if truth.crowd.all():
            raise UserError("downstream.test: none of its images has a box that counts")
        self._images = images
        self._truth = COCO(
            {
                "images": [{"id": number} for number in range(images)],
                "categories": [{"id": label, "name": str(label)} for label in range(classes)],
                "annotations": [{"id": row + 1, **box} for row, box in enumerate(_coco(truth))],
            }
        )
        self._found = self._truth.loadRes(_coco(found))

    def by_class(self, left_out: np.ndarray | None = None) -> np.ndarray:
        """float64 (THRESHOLDS, classes): of each class at each IoU; NaN where no true box is of a class.

        Args:
            left_out: bool (images,): images that are not counted; None counts all.
        """
        from faster_coco_eval import COCOeval_faster

        judge = COCOeval_faster(self._truth, self._found, "bbox")
        if left_out is not None:
            judge.params.imgIds = np.flatnonzero(~left_out).tolist()
        judge.evaluate()
        judge.accumulate()
        precision = judge.eval["precision"][:, :, :, 0, -1]  # of all sizes of boxes, and the most boxes an image
        return np.where(precision < 0, np.nan, precision).mean(1)

    def standard_error(self) -> float | None:
        """The jackknife's standard error of the mean: how much the choice of images alone changes it; None if not defined.

        It leaves out one group of images after the other: every image is a group of its own, or 20 groups take the images in
        turn (Kott, The delete-a-group jackknife, 2001).
        """
        groups = min(self._images, _GROUPS)
        if groups < 2:
            return None
        of = np.arange(self._images) % groups
        without = np.array([mean(self.by_class(of == group)) for group in range(groups)])
        if np.isnan(without).any():
            return None
        return math.sqrt((groups - 1) / groups * float(np.square(without - without.mean()).sum()))


def mean(by_class: np.ndarray) -> float:
    """The mean over classes that have true boxes, NaN where none has, of what `Precisions.by_class` returns or rows of it."""
    return float(np.nanmean(by_class)) if (~np.isnan(by_class)).any() else math.nan


def constant_boxes(images: int, truth: BoxRows) -> BoxRows:
    """The trivial answer: of each class one box at the same place in all images, the true one that fits most images best.

    Of the true boxes of a class up to 256 are tried, spread evenly. It counts at how many thresholds a box is right, and in how
    many images; it may know the test set, and no network must be trained for it.
    """
    import torch
    from torchvision.ops import box_iou

    found = BoxRows.none()
    for label in np.unique(truth.classes[~truth.crowd]):
        own = truth.take(np.flatnonzero((truth.classes == label) & ~truth.crowd))
        own = own.take(np.argsort(own.image, kind="stable"))
        tried = own.corners[np.unique(np.linspace(0, len(own) - 1, _CANDIDATES).round().astype(int))]
        ious = box_iou(torch.from_numpy(tried), torch.from_numpy(own.corners)).numpy()
        best = np.maximum.reduceat(ious, np.flatnonzero(np.diff(own.image, prepend=-1)), axis=1)  # in each image that has one
        right = np.clip(np.floor((best - 0.5) / 0.05 + 1e-9) + 1, 0, THRESHOLDS).sum(1)
        box = tried[right.argmax()]
        found += BoxRows.of(np.arange(images), np.tile(box, (images, 1)), np.full(images, label))
    return found


def _coco(boxes: BoxRows) -> list[dict[str, Any]]:
    sizes = boxes.corners[:, 2:] - boxes.corners[:, :2]
    rows = zip(*(x.tolist() for x in (boxes.image, boxes.corners, sizes, boxes.classes, boxes.scores, boxes.crowd)))
    return [
        {
            "image_id": image,
            "category_id": label,
            "bbox": [*corners[:2], *size],
            "area": size[0] * size[1],
            "score": score,
            "iscrowd": int(crowd),
        }
        for image, corners, size, label, score, crowd in rows
    ]
