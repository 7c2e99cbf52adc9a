"""Resizes windows to square crops, bilinearly with antialiasing, by torch's kernel, and turns and mirrors them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np


class Resize:
    """Resizes an HWC uint8 array into a square HWC uint8 array, bilinearly with antialiasing, without a copy in between."""

    def __init__(self) -> None:
        import cv2
        import torch

        self._torch, self._cv2 = torch, cv2
        # The public function returns a planar tensor, whose later use as HWC costs a strided copy; the kernel behind it can write
        # into a given tensor. Its name is internal, hence the fallback, which gives the same pixels.
        self._kernel = getattr(getattr(torch.ops.aten, "_upsample_bilinear2d_aa", None), "out", None)

    def __call__(self, source: np.ndarray, turn: bool, mirror: np.ndarray, target: np.ndarray) -> None:
        """Resize a window, then turn it a quarter counter-clockwise and mirror it (left to right, top to bottom)."""
        self._resized(source[None], target[None])
        self._oriented(target, turn, mirror)

    def _oriented(self, target: np.ndarray, turn: bool, mirror: np.ndarray) -> None:
        if turn:
            target[:] = np.rot90(target)  # numpy copies what overlaps
        across, down = mirror.tolist()
        if across or down:
            self._cv2.flip(target, {(True, False): 1, (False, True): 0, (True, True): -1}[across, down], dst=target)

    def many(self, sources: Sequence[np.ndarray | str], turn: np.ndarray, mirror: np.ndarray, targets: np.ndarray) -> None:
        """Do the same for n small windows: those of one size are resized by one call.

        Args:
            sources: the windows; strings are left out.
            turn: bool (n,), whether to turn each.
            mirror: bool (n, 2), how to mirror each.
            targets: uint8 (n, s, s, 3), which is written.
        """
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for row, source in enumerate(sources):
            if not isinstance(source, str):
                alike[source.shape].append(row)
        for rows in alike.values():
            made = np.empty((len(rows), *targets.shape[1:]), np.uint8)
            self._resized(np.stack([sources[row] for row in rows]), made)
            targets[rows] = made
        for row in np.flatnonzero(turn | mirror.any(axis=1)).tolist():
            self._oriented(targets[row], bool(turn[row]), mirror[row])

    def _resized(self, sources: np.ndarray, targets: np.ndarray) -> None:
        size = list(targets.shape[1:3])
        planar = self._torch.from_numpy(sources).permute(0, 3, 1, 2)
        if self._kernel is not None:
            self._kernel(planar, size, False, None, None, out=self._torch.from_numpy(targets).permute(0, 3, 1, 2))
        else:
            made = self._torch.nn.functional.interpolate(planar, size, mode="bilinear", antialias=True)
            targets[:] = made.permute(0, 2, 3, 1).numpy()
