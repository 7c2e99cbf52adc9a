"""JPEGs decoded at a part of their size, so that pixels which a small crop would average away are never made."""

from __future__ import annotations

from typing import Any

import numpy as np

FACTORS = (8, 4, 2)


class ReducedDecoder:
    """Decodes the window of a crop at 1/2, 1/4 or 1/8, never smaller than the crop; one thread's own.

    The pixels are not those of a full decode that is resized (they are a level or two apart, and the window is rounded to reduced
    pixels, which moves it by half a pixel of the crop at most), so a recipe must ask for it.

    Args:
        size: side of the crop, pixels.
    """

    def __init__(self, size: int) -> None:
        import simplejpeg

        self._decode, self._size = simplejpeg.decode_jpeg, size
        self._buffer = np.empty(0, np.uint8)

    def __call__(self, encoded: bytes | memoryview, stream: Any, window: list[int]) -> np.ndarray | None:
        """Decode.

        Args:
            encoded: the file's bytes.
            stream: its parsed code stream.
            window: top, left, height, width of the crop in the photo as it is stored.

        Returns:
            The window, reduced, uint8 (h, w, 3), good until the next call; None where there is nothing to gain, or this decoder
            cannot (another format, grey, CMYK, damage): it is then decoded in full.
        """
        factor = next((factor for factor in FACTORS if min(window[2:]) >= factor * self._size), 1)
        if factor == 1 or stream.codec_name != "jpeg" or stream.num_channels != 3:
            return None
        h, w = -(-stream.height // factor), -(-stream.width // factor)
        if len(self._buffer) < h * w * 3:
            self._buffer = np.empty(h * w * 3, np.uint8)
        try:
            photo = self._decode(encoded, "RGB", min_height=h, min_width=w, buffer=self._buffer, strict=False)
        except ValueError:
            return None
        top, left, height, width = (round(number / factor) for number in window)
        return np.ascontiguousarray(photo[top : top + height, left : left + width])
