"""A fixed field of standard normal numbers, from which engines cut the noise of each sample at drawn places.

Noise must depend on the sample only; DALI's own depends on the place in the batch. Cuts from a field that is the same everywhere,
at places that are drawn by sample, depend on nothing else.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from pipeline.draws import Draws

REACH = 256
"""Greatest distance of a cut from the field's corner along each axis: there are 257 x 257 places."""

_STEPS = 256  # the numbers are multiples of 1/256, so that the last bits of a logarithm on another machine do not matter


@cache
def normal_field(size: int) -> np.ndarray:
    """Standard normal numbers, float32 (size + REACH, size + REACH, 3), for crops of `size` pixels; the same on every machine.

    They are computed by Box & Muller's method from the counter-based generator of `pipeline.draws`.
    """
    rows = Draws(0, 0, np.arange(size + REACH, dtype=np.uint64)).stream("field")
    radius = np.sqrt(-2 * np.log(rows.uniform("radius", shape=(size + REACH, 3))))
    normal = radius * np.cos(2 * np.pi * rows.uniform("angle", shape=(size + REACH, 3)))
    field = (np.rint(normal * _STEPS) / _STEPS).astype(np.float32)
    field.flags.writeable = False  # all callers share this array
    return field
