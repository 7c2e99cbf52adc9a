"""The one door to nvimgcodec, NVIDIA's codec library, so that it is imported late and told to be quiet once."""

from __future__ import annotations

import os
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


def cpu_decoder(threads: int) -> Any:
    """A decoder that uses `threads` CPU threads and never looks for a GPU."""
    codec = nvimgcodec()
    return codec.Decoder(
        device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY, max_num_cpu_threads=threads, backends=[codec.Backend(codec.CPU_ONLY)]
    )
