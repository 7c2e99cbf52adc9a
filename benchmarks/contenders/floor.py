"""The floor: libjpeg-turbo (simplejpeg) decodes whole photos that lie in memory, on one core, and nothing else happens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import simplejpeg

from benchmarks.work import Batch, Job, members

PASSES = False


def batches(job: Job) -> Iterator[Batch]:
    """Endless batches; what they hold is no crop, and `image` has only the batch's length."""
    photos = [photo for shard in job.shards[:2] for photo in members(shard)]
    buffer = bytearray(1 << 26)
    none = np.empty((job.batch, 0), np.uint8)
    while True:
        for start in range(0, len(photos) - job.batch + 1, job.batch):
            for photo in photos[start : start + job.batch]:
                simplejpeg.decode_jpeg(photo, "RGB", buffer=buffer, strict=False)
            yield {"image": none}
