"""Decodes a window of an image on the CPU. A run quarantines the images that it cannot decode; `inspect --deep` lists them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
        if isinstance(stream, UnusualImage):
            return stream.window(*window)
        decoded = self._decoder.decode(self._part(stream, window), params=self._params)
        if decoded is None:
            raise Undecodable(UNDECODABLE)
        return np.asarray(decoded)

    def many(self, streams: Sequence[object], windows: Sequence[Sequence[int]]) -> list[np.ndarray | str]:
        """Decode windows of several images by one call, which takes half the time an image if they are small.

        Args:
            streams: as in `__call__`.
            windows: of each image, as there.

        Returns:
            The pixels of each, as there, or the reason why it cannot be decoded.
        """
        if len(streams) == 1 or any(isinstance(stream, UnusualImage) for stream in streams):
            return [self._pixels_or_reason(stream, window) for stream, window in zip(streams, windows)]
        regions = [self._part(stream, window) for stream, window in zip(streams, windows)]
        found = self._decoder.decode(regions, params=self._params)
        return [UNDECODABLE if decoded is None else np.asarray(decoded) for decoded in found]

    def _pixels_or_reason(self, stream: object, window: Sequence[int]) -> np.ndarray | str:
        try:
            return self(stream, window)
        except Undecodable as error:
            return str(error)

    def _part(self, stream: Any, window: Sequence[int]) -> Any:
        top, left, height, width = window
        return stream.get_sub_code_stream(region=self._region(top, left, top + height, left + width))

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
