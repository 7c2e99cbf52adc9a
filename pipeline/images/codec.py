"""The one door to the codec libraries, nvimgcodec and Pillow, so that they are imported late and set up once."""

from __future__ import annotations

import os
import warnings
from functools import cache
from typing import Any


def quiet() -> None:
    """Keep the codec libraries from writing about every bad image, which becomes a quarantine row anyway.

    To be called before they are loaded, as they read these once. What libjpeg, libpng, libtiff and DALI write on damaged data
    cannot be switched off.
    """
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    os.environ.setdefault("DALI_NVIMGCODEC_LOG_LEVEL", "1")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")


@cache
def nvimgcodec() -> Any:
    """The module."""
    quiet()
    from nvidia import nvimgcodec as module

    return module


@cache
def pillow() -> Any:
    """Pillow's module `Image`, without a limit of its own: `image.max_pixels` is what counts."""
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
