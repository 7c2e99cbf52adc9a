"""How actors use memory: blocks that they will want again stay theirs, and the collector spares what they have loaded."""

from __future__ import annotations

import ctypes
import gc

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_memory() -> None:
    """Let the C library keep what is freed, in place of giving it back to the system.

    Batches of pixels are made and dropped all the time; each that comes anew from the system is cleared by the kernel first,
    which takes as long as filling it. Does nothing where there is no `mallopt` (another C library than glibc). See mallopt(3).

    `MALLOC_MMAP_MAX_` and `MALLOC_TRIM_THRESHOLD_` in the environment do the same, but only from the start of a process: Ray
    would have to start workers of another environment for this, and a process of the user's would need them, too.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _NEVER)


def freeze_loaded() -> None:
    """Spare Python's garbage collector the objects that an actor has loaded: else it walks them all again and again."""
    gc.collect()
    gc.freeze()
