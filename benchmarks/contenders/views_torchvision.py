"""Views by torchvision: one decode, and its v2 transforms on uint8 tensors, in a DataLoader over `webdataset`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torchvision.transforms import v2

from benchmarks.contenders.dataloader import loaded
from benchmarks.peers import decoded
from benchmarks.work import Batch, Job

PASSES = False
_KERNEL = 13  # three standard deviations of the widest blur to each side


def batches(job: Job) -> Iterator[Batch]:
    """Endless batches."""
    (task,) = job.tasks
    large = _view(job.size, (0.08, 1.0) if task == "simclr" else (0.14, 1.0))
    small = _view(96, (0.05, 0.14))

    def make(encoded: bytes) -> dict[str, Any]:
        photo = decoded(encoded)
        made = {f"{task}.input": torch.stack([large(photo) for _ in range(2)])}
        return made if task == "simclr" else {**made, f"{task}.small": torch.stack([small(photo) for _ in range(6)])}

    return loaded(job, make)


def _view(size: int, scale: tuple[float, float]) -> v2.Transform:
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=scale, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(_KERNEL, sigma=(0.1, 2.0))], p=0.5),
        ]
    )
