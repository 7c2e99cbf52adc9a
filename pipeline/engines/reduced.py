"""Decodes JPEGs at a fraction of their size, which is faster if a crop is much smaller than the photo."""

from __future__ import annotations

from typing import Any

import numpy as np

FACTORS = (8, 4, 2)


class ReducedDecoder:
    """Decodes JPEGs at 1/2, 1/4 or 1/8 of their size. One decoder must not be used by several threads.

    The pixels differ from those of a resized full decode by a level or two, and windows are rounded to reduced pixels, which
    moves them by at most half a pixel of the crop. So a recipe must ask for it.
    """

    def __init__(self) -> None:
        import simplejpeg

        self._decode = simplejpeg.decode_jpeg
        self._buffer = np.empty(0, np.uint8)

    def __call__(self, encoded: bytes | memoryview, stream: Any, room: float) -> tuple[np.ndarray, int] | None:
        """Decode a whole photo at the smallest size that `room` allows.

        Args:
            encoded: the file's bytes.
            stream: its parsed code stream.
            room: greatest factor by which the photo may be reduced, so that no window becomes smaller than its crop or view.

        Returns:
            The reduced photo, uint8 (h, w, 3), valid until the next call, and the factor. None if the photo cannot be reduced, or
            not by this decoder (another format, grey, CMYK, damage); it must then be decoded in full.
        """
        factor = next((factor for factor in FACTORS if room >= factor), 1)
        if factor == 1 or stream.codec_name != "jpeg" or stream.num_channels != 3:
            return None
        h, w = -(-stream.height // factor), -(-stream.width // factor)
        if len(self._buffer) < h * w * 3:
            self._buffer = np.empty(h * w * 3, np.uint8)
        try:
            return self._decode(encoded, "RGB", min_height=h, min_width=w, buffer=self._buffer, strict=False), factor
        except ValueError:
            return None
