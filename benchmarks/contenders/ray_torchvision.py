"""Ray Data as its documentation does it: `read_webdataset`, and a `map` that decodes and transforms with torchvision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.contenders import plain_ray
from benchmarks.peers import crop_tensor, pairs_of_tensor
from benchmarks.work import Batch, Job

PASSES = True


def batches(job: Job) -> Iterator[Batch]:
    """Endless batches."""

    def make(row: dict[str, Any]) -> dict[str, Any]:
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg

        photo = decode_jpeg(torch.frombuffer(bytearray(row["jpg"]), dtype=torch.uint8), ImageReadMode.RGB)
        made = pairs_of_tensor(crop_tensor(photo, job), job)
        return {name: value.numpy() if isinstance(value, torch.Tensor) else value for name, value in made.items()}

    with plain_ray.quietly() as data:
        read = data.read_webdataset(plain_ray.repeated(job), suffixes=["jpg"], decoder=None)
        yield from plain_ray.arriving(read.map(make), job)
