"""Decodes a window of an image on the CPU. A run quarantines the images that it cannot decode; `inspect --deep` lists them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.engines.base import UNDECODABLE
from pipeline.images.check import Header
from pipeline.images.codec import cpu_decoder, nvimgcodec
from pipeline.images.unusual import Undecodable, UnusualImage


class WindowDecoder:
    """Decodes only the window, by nvimgcodec. One decoder must not be used by several threads."""

    def __init__(self) -> None:
        codec = nvimgcodec()
        self._decoder, self._region = cpu_decoder(1), codec.Region
        self._params = codec.DecodeParams(apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB)

    def __call__(self, stream: object, window: Sequence[int]) -> np.ndarray:
        """Decode a window.

        Args:
            stream: the file's code stream or `UnusualImage`, as in `pipeline.images.check.Header`.
            window: top, left, height, width in the photo as it is stored; for an unusual image in the upright photo.

        Returns:
            uint8 (height, width, 3).

        Raises:
            Undecodable: the image cannot be decoded; the message is the reason.
        """
        top, left, height, width = window
        if isinstance(stream, UnusualImage):
            return stream.window(top, left, height, width)
        region = stream.get_sub_code_stream(region=self._region(top, left, top + height, left + width))  # type: ignore[attr-defined]
        decoded = self._decoder.decode(region, params=self._params)
        if decoded is None:
            raise Undecodable(UNDECODABLE)
        return np.asarray(decoded)

    def whole(self, header: Header) -> str | None:
        """Decode a whole image and discard its pixels; returns the reason why it cannot be decoded, or None."""
        height, width = header.height, header.width
        if header.orientation in (5, 6, 7, 8):
            height, width = width, height
        try:
            self(header.stream, (0, 0, height, width))
        except Undecodable as error:
            return str(error)
        return None
