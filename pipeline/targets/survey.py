"""Counts the masks and boxes of a corpus for `inspect`, and names those that training will refuse."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from pipeline.shards.labelled_files import TargetTally
from pipeline.targets.base import BadTarget
from pipeline.targets.boxes import MEMBER, degenerate, read_boxes
from pipeline.targets.masks import IGNORED, MASK, read_mask


@dataclass(frozen=True)
class TargetReader:
    """Counts masks and boxes; a `pipeline.shards.labelled_files.TargetSurvey`.

    Args:
        classes: the numbers that the index names; None where it names none, and any will do.
    """

    classes: frozenset[int] | None = None
    members = (MASK, MEMBER)

    def look(self, member: str, body: bytes | memoryview, height: int, width: int) -> tuple[TargetTally, str | None]:
        if not len(body):
            return TargetTally(), f"it has no {member}"
        try:
            found = _mask(body, height, width) if member == MASK else _boxes(body, height, width)
        except BadTarget as error:
            return TargetTally(degenerate=degenerate(body) if member == MEMBER else 0), str(error)
        unknown = [] if self.classes is None else sorted(found.numbers.keys() - self.classes)
        if unknown:
            return TargetTally(), f"its {member} has the number {unknown[0]}, and no class has that number"
        return found, None


def _mask(body: bytes | memoryview, height: int, width: int) -> TargetTally:
    numbers, pixels = np.unique(read_mask(body, (height, width)), return_counts=True)
    found = Counter(dict(zip(numbers.tolist(), pixels.tolist())))
    ignored = found.pop(IGNORED, 0)
    return TargetTally(1, found, ignored)


def _boxes(body: bytes | memoryview, height: int, width: int) -> TargetTally:
    found = read_boxes(body, (height, width))
    return TargetTally(1, Counter(found.classes[~found.crowd].tolist()), int(found.crowd.sum()), int(not len(found.classes)))
