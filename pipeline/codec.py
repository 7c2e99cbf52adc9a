"""The one door to nvimgcodec, NVIDIA's codec library, so that it is imported late and told to be quiet once."""

from __future__ import annotations

import os
from functools import cache
from typing import Any


@cache
def nvimgcodec() -> Any:
    """The module; its own warnings are off because every failed image is reported as a quarantine row."""
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    from nvidia import nvimgcodec as module

    return module


def cpu_decoder(threads: int) -> Any:
    """A decoder that uses `threads` CPU threads and never looks for a GPU."""
    codec = nvimgcodec()
    return codec.Decoder(
        device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY, max_num_cpu_threads=threads, backends=[codec.Backend(codec.CPU_ONLY)]
    )
