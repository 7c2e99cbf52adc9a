"""Loads the codec libraries, nvimgcodec and Pillow, when they are first used, and sets them up once."""

from __future__ import annotations

import os
import warnings
from functools import cache
from typing import Any


def quiet() -> None:
    """Keep the codec libraries from logging every bad image; the quarantine lists these anyway.

    Call this before they are loaded: they read these variables once. What libjpeg, libpng, libtiff and DALI print about damaged
    data cannot be switched off.
    """
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    os.environ.setdefault("DALI_NVIMGCODEC_LOG_LEVEL", "1")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")


@cache
def nvimgcodec() -> Any:
    """The module `nvidia.nvimgcodec`."""
    quiet()
    from nvidia import nvimgcodec as module

    return module


@cache
def pillow() -> Any:
    """Pillow's module `Image`, without its own limit on pixels: `image.max_pixels` applies instead."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged tags: what cannot be decoded is a quarantine row
    return Image


def cpu_decoder(threads: int) -> Any:
    """A decoder that uses `threads` CPU threads and never looks for a GPU."""
    codec = nvimgcodec()
    return codec.Decoder(
        device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY, max_num_cpu_threads=threads, backends=[codec.Backend(codec.CPU_ONLY)]
    )
