"""Views by lightly: PIL decodes once, and its transforms make views, float in 0..1, in a DataLoader over `webdataset`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import torch
from lightly.transforms import SimCLRTransform, SwaVTransform
from PIL import Image

from benchmarks.contenders.dataloader import loaded
from benchmarks.work import Batch, Job

PASSES = False


def batches(job: Job) -> Iterator[Batch]:
    """Endless batches."""
    (task,) = job.tasks
    sizes = {"crop_sizes": (job.size, 96)}
    views: Any = SimCLRTransform(job.size, normalize=None) if task == "simclr" else SwaVTransform(**sizes, normalize=None)

    def make(encoded: bytes) -> dict[str, Any]:
        found = views(Image.open(io.BytesIO(encoded)).convert("RGB"))
        made = {f"{task}.input": torch.stack(found[:2])}
        return made if task == "simclr" else {**made, f"{task}.small": torch.stack(found[2:])}

    return loaded(job, make)
