"""Ray Data with PIL: `read_webdataset` decodes with PIL, and a `map` crops with torchvision's transforms of PIL images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.contenders import plain_ray
from benchmarks.peers import columns_of, mirrored, pairs_into, window
from benchmarks.work import Batch, Job

PASSES = True


def batches(job: Job) -> Iterator[Batch]:
    """Endless batches."""

    def make(row: dict[str, Any]) -> dict[str, Any]:
        import io

        from PIL import Image
        from torchvision.transforms.v2 import functional

        photo = Image.open(io.BytesIO(row["jpg"])).convert("RGB")
        y, x, h, w = window(photo.height, photo.width, job.center)
        crop = functional.resized_crop(photo, y, x, h, w, [job.size, job.size])
        crop = functional.horizontal_flip(crop) if mirrored(job.center) else crop
        columns = columns_of(job, 1)
        pairs_into(columns, 0, np.asarray(crop), job)
        return {name: column[0] for name, column in columns.items()}

    with plain_ray.quietly() as data:
        read = data.read_webdataset(plain_ray.repeated(job), suffixes=["jpg"], decoder=None)
        yield from plain_ray.arriving(read.map(make), job)
