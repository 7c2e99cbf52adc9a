"""The pixel vocabulary: the few words in which every task says what it does to an image.

Each engine implements all of them (`cpu.CpuOps` on batches of numpy arrays, `dali.DaliOps` on graph nodes), and the contract test
holds both against plain numpy. Images are uint8 RGB of the recipe's size; what was drawn comes as arrays whose first axis is the
batch.
"""

from __future__ import annotations

from typing import Any, Protocol


class Ops(Protocol):
    """What a task can ask of an engine."""

    size: int
    """Side of the square crop, pixels."""

    def rotate90(self, image: Any, turns: Any) -> Any:
        """Turn counter-clockwise by `turns` (n,) quarter turns; pixels are moved, never mixed. (h, w, 3) -> (h, w, 3)."""

    def erase(self, image: Any, boxes: Any, fill: tuple[int, int, int]) -> Any:
        """Paint boxes (n, m, 4) of (top, left, height, width) in a constant colour. (h, w, 3) -> (h, w, 3)."""

    def gray(self, image: Any) -> Any:
        """Brightness, 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601), rounded. (h, w, 3) -> (h, w, 1)."""

    def drop_colour(self, image: Any, where: Any) -> Any:
        """Where `where` (n,) holds, all three channels become the brightness. (h, w, 3) -> (h, w, 3)."""

    def patches(self, image: Any, corners: Any, side: int, count: int) -> Any:
        """`count` square patches, their top left corners, (y, x), at `corners` (n, count, 2).

        (h, w, 3) -> (count, side, side, 3).
        """
