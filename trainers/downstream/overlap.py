"""Mean IoU: how well predicted masks cover the true ones, from counts of pixels over a whole data set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.errors import UserError


@dataclass(frozen=True)
class Overlaps:
    """Counts of pixels, image by image; pixels that do not count are left out.

    Args:
        ids: uint64 (n,): the images.
        counts: int64 (n, 3, classes): pixels of each class that were named rightly, that are of it, and that were named it.
        confusion: int64 (classes, classes) over all images: [i, j] are pixels of class i that were named j.
    """

    ids: np.ndarray
    counts: np.ndarray
    confusion: np.ndarray

    @classmethod
    def none(cls, classes: int) -> Overlaps:
        """Those of no image."""
        empty = np.zeros((0, 3, classes), np.int64)
        return cls(np.zeros(0, np.uint64), empty, np.zeros((classes, classes), np.int64))

    @classmethod
    def of(cls, ids: np.ndarray, truth: np.ndarray, named: np.ndarray, classes: int) -> Overlaps:
        """Those of some images.

        Args:
            ids: uint64 (n,).
            truth: integers (n, h, w): the true classes; numbers of `classes` and above do not count.
            named: integers (n, h, w): the predicted classes, below `classes`.
            classes: number of classes.
        """
        confusions = np.zeros((len(ids), classes, classes), np.int64)
        for i in range(len(ids)):
            counted = truth[i] < classes
            pairs = truth[i][counted].astype(np.int64) * classes + named[i][counted]
            confusions[i] = np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
        counts = np.stack([np.diagonal(confusions, axis1=1, axis2=2), confusions.sum(2), confusions.sum(1)], axis=1)
        return cls(ids, counts, confusions.sum(0))

    def __add__(self, other: Overlaps) -> Overlaps:
        """Those of the images of both, in order of their ids."""
        ids = np.concatenate([self.ids, other.ids])
        order = np.argsort(ids, kind="stable")
        return Overlaps(ids[order], np.concatenate([self.counts, other.counts])[order], self.confusion + other.confusion)

    def ious(self) -> np.ndarray:
        """Float64 (classes,): the IoU of each class, NaN for a class that no pixel is of."""
        return _ious(self.counts.sum(0))

    def mean(self) -> float:
        """Mean IoU over the classes that occur.

        Raises:
            UserError: no pixel counts.
        """
        ious = self.ious()
        if np.isnan(ious).all():
            raise UserError("downstream.test: no pixel of its masks counts: all are 255, or in no square at an image's centre")
        return float(np.nanmean(ious))

    def standard_error(self) -> float | None:
        """How much the choice of test images alone changes the mean IoU, by the jackknife over images; None for one image.

        Mean IoU is a function of sums over images and no mean of numbers of single images, so it is computed again without each
        of the images (Efron & Stein, The jackknife estimate of variance, 1981).
        """
        n = len(self.ids)
        if n < 2:
            return None
        total, without = self.counts.sum(0), np.empty(n)
        for i in range(n):
            ious = _ious(total - self.counts[i])
            without[i] = np.nanmean(ious) if (~np.isnan(ious)).any() else math.nan
        if np.isnan(without).any():
            return None
        return math.sqrt((n - 1) / n * float(np.square(without - without.mean()).sum()))

    def accuracy(self) -> float:
        """The share of pixels that were named rightly; one pixel must count, as for `trivial`."""
        right, true, _ = self.counts.sum((0, 2))
        return float(right / true)

    def trivial(self) -> float:
        """The mean IoU of naming the most frequent class everywhere: its share of the pixels, by the number of classes."""
        true = self.counts.sum(0)[1]
        return float(true.max() / true.sum() / (true > 0).sum())


def _ious(counts: np.ndarray) -> np.ndarray:
    """The IoU of each class of counts (3, classes); a class that no pixel is of has none, however often it was named."""
    right, true, named = counts.astype(np.float64)
    union = true + named - right
    return np.where(true > 0, right / np.where(union > 0, union, 1), np.nan)
