"""JPEGs decoded at a part of their size, so that pixels which a small crop would average away are never made."""

from __future__ import annotations

from typing import Any

import numpy as np

FACTORS = (8, 4, 2)


class ReducedDecoder:
    """Decodes photos at 1/2, 1/4 or 1/8; one thread's own.

    The pixels are not those of a full decode that is resized (they are a level or two apart, and windows are rounded to reduced
    pixels, which moves them by half a pixel of what is made of them at most), so a recipe must ask for it.
    """

    def __init__(self) -> None:
        import simplejpeg

        self._decode = simplejpeg.decode_jpeg
        self._buffer = np.empty(0, np.uint8)

    def __call__(self, encoded: bytes | memoryview, stream: Any, room: float) -> tuple[np.ndarray, int] | None:
        """Decode.

        Args:
            encoded: the file's bytes.
            stream: its parsed code stream.
            room: by how much the photo may be reduced: no window then becomes smaller than what is made of it.

        Returns:
            The whole photo, reduced, uint8 (h, w, 3), good until the next call, and the factor; None where there is nothing to
            gain, or this decoder cannot (another format, grey, CMYK, damage): it is then decoded in full.
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
