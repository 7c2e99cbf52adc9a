"""Masks: a class for each pixel of an image, from its `seg.png`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.images.codec import pillow
from pipeline.shards.naming import MASK
from pipeline.targets.base import BadTarget, Crops, Target

IGNORED = 255
"""The number, in files and in columns, of pixels that do not count; and so classes are at most 255."""

_MODES = ("1", "L", "P", "I;16", "I")


@dataclass(frozen=True)
class MaskTarget(Target):
    """A class for each pixel: column `mask`, uint8 (n, size, size), `IGNORED` where a pixel does not count.

    The file is a PNG of class numbers: grey levels of 1 to 16 bits, or places in a palette.

    Args:
        labels: label of each class number that masks hold; a mask with another number, `IGNORED` apart, cannot be used.
    """

    member = MASK
    labels: dict[int, int]

    @cached_property
    def _table(self) -> np.ndarray:
        table = np.full(max(IGNORED, *self.labels) + 1, -1, np.int16)
        table[list(self.labels)] = list(self.labels.values())
        table[IGNORED] = IGNORED
        return table

    def row_bytes(self, size: int) -> int:
        return size * size

    def read(self, body: bytes | memoryview, height: int, width: int) -> np.ndarray:
        """Labels, uint8 (height, width); errors as of `Target.read`."""
        numbers = read_mask(body, (height, width))
        counts = np.bincount(numbers.ravel(), minlength=len(self._table))
        there = np.flatnonzero(counts)
        unknown = there[(there >= len(self._table)) | (self._table[np.minimum(there, len(self._table) - 1)] < 0)]
        if len(unknown):
            raise BadTarget(
                f"its mask has the number {unknown[0]} at {counts[unknown[0]]:,} pixels, and no class has that number"
                + (f", nor {_listed(unknown[1:])}" if len(unknown) > 1 else "")
            )
        return self._table[numbers].astype(np.uint8)

    def columns(self, found: Sequence[np.ndarray | None], crops: Crops) -> dict[str, np.ndarray]:
        mask = np.full((len(found), crops.size, crops.size), IGNORED, np.uint8)
        for i, labels in enumerate(found):
            if labels is not None:
                top, left, height, width = crops.windows[i].tolist()
                rows, columns = top + nearest(height, crops.size), left + nearest(width, crops.size)
                mask[i] = labels[np.ix_(rows, columns[::-1] if crops.mirror[i] else columns)]
        return {"mask": mask}


def nearest(extent: int, size: int) -> np.ndarray:
    """The pixels of a line of `extent` that hold the centres of the `size` pixels to which it is resized, int64 (size,)."""
    return (2 * np.arange(size) + 1) * extent // (2 * size)


def read_mask(body: bytes | memoryview, size: tuple[int, int] | None = None) -> np.ndarray:
    """The numbers in a mask's file, integers (h, w).

    Args:
        body: the file.
        size: height and width that it must have; nothing else is decoded.

    Raises:
        BadTarget: it is no PNG of numbers, has another size, or is damaged.
    """
    try:
        image = pillow().open(io.BytesIO(body), formats=("PNG",))
    except Exception as error:  # noqa: BLE001  Pillow raises anything for damaged files
        raise BadTarget(f"its mask is no PNG that can be read ({type(error).__name__})") from None
    with image:
        if size is not None and (image.height, image.width) != size:
            raise BadTarget(f"its mask has {image.width}x{image.height} pixels, and the image {size[1]}x{size[0]}")
        if image.mode not in _MODES:
            raise BadTarget(f"its mask has colours ({image.mode}); save class numbers as grey levels or as places in a palette")
        if "transparency" in image.info:
            raise BadTarget("its mask has transparent colours, which stand for no class; save it without transparency")
        try:
            return np.asarray(image).astype(np.int64)
        except Exception as error:  # noqa: BLE001  as above
            raise BadTarget(f"its mask cannot be decoded: {error}") from None


def _listed(numbers: np.ndarray) -> str:
    return ", ".join(map(str, numbers[:4])) + (", ..." if len(numbers) > 4 else "")
