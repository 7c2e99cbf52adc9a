"""The kinds of targets: how each is read and checked, and how it follows the crop of its image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from pipeline.shards.corpus import Sample

TARGET_COLUMNS = ("mask", "boxes", "box_class", "crowd")
"""The columns of all kinds of targets; the class of an image is a column of every batch."""


class BadTarget(Exception):
    """A target that cannot be used; the message says why, as the reason in a row of the quarantine."""


@dataclass(frozen=True)
class Crops:
    """How the crops of n samples were cut: each is a window of the upright photo, resized to a square, perhaps mirrored.

    Args:
        windows: int32 (n, 4): top, left, height, width in the upright photo, pixels.
        mirror: bool (n,): mirrored left to right afterwards.
        size: side of the crops, pixels.
    """

    windows: np.ndarray
    mirror: np.ndarray
    size: int


class Target(ABC):
    """What a labelled sample asks for beside its image. A subclass is a frozen dataclass, small and picklable.

    Photos are upright here, as people see them when they draw masks and boxes: EXIF orientation is applied.

    Attributes:
        member: extension of the member of a sample that holds the target; None where the index holds it.
        whole: whether tests show the whole photo, squeezed to a square, and not its centre: an object that is cut is another one.
    """

    member: ClassVar[str | None] = None
    whole: ClassVar[bool] = False

    def asked(self, sample: Sample) -> Sample:
        """The sample as it is rendered: with a `problem` where its target is missing."""
        if sample.problem is None and self.member is not None and not len(sample.target):
            return replace(sample, problem=f"it has no {self.member}")
        return sample

    def row_bytes(self, size: int) -> int:
        """Bytes of a row of the columns, for crops of `size` pixels."""
        return 0

    @abstractmethod
    def read(self, body: bytes | memoryview, height: int, width: int) -> Any:
        """Read and check the target of a photo of that height and width, upright.

        Raises:
            BadTarget: it cannot be used.
        """

    @abstractmethod
    def columns(self, found: Sequence[Any], crops: Crops) -> dict[str, np.ndarray]:
        """Move the targets as the crops were cut.

        Args:
            found: of n samples, what `read` returned; None where a sample cannot be used.
            crops: of the same samples.

        Returns:
            Some of `TARGET_COLUMNS`, n rows each; the kind of target says which.
        """
