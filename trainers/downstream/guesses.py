"""What a protocol says of test images: the class that it names, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainers.learning.ranks import gathered


@dataclass(frozen=True)
class Guesses:
    """The classes that a protocol names.

    Args:
        ids: uint64 (m,): the test images.
        y: int64 (m,): their labels.
        named: int64 (m,): the class that it names.
        sure: float32 (m,), 0..1: how sure it is, by its own measure.
    """

    ids: np.ndarray
    y: np.ndarray
    named: np.ndarray
    sure: np.ndarray

    @classmethod
    def of_scores(cls, ids: np.ndarray, y: np.ndarray, scores: list[Tensor]) -> Guesses:
        """Those of the highest of each row's scores, parts of float (m, classes); it is as sure as their softmax."""
        found = [part.float().softmax(1).max(1) for part in scores]
        named = [part.indices.cpu() for part in found] or [torch.zeros(0, dtype=torch.int64)]
        sure = [part.values.cpu() for part in found] or [torch.zeros(0)]
        return cls(ids, y, torch.cat(named).numpy(), torch.cat(sure).numpy())

    def together(self, world: int) -> Guesses:
        """Those of all ranks, in order of their ids."""
        parts = gathered([self], world)
        columns = [np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "y", "named", "sure")]
        order = np.argsort(columns[0], kind="stable")
        return Guesses(*(column[order] for column in columns))

    @property
    def accuracy(self) -> float:
        """The share of images whose class is named rightly."""
        return float((self.named == self.y).mean())

    def confusion(self, classes: int) -> np.ndarray:
        """int64 (classes, classes): [i, j] are images of class i that were named j."""
        return np.bincount(self.y * classes + self.named, minlength=classes * classes).reshape(classes, classes)

    def most_wrong(self, count: int) -> np.ndarray:
        """Rows that were named wrongly, the surest first; of equals, those of the lowest ids."""
        wrong = np.flatnonzero(self.named != self.y)
        return wrong[np.lexsort((self.ids[wrong], -self.sure[wrong]))][:count]
