"""This project in a plain loop: `pairs(recipe)`, which reads, renders and batches in one process, on one core."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.contenders.ours import recipe_of
from benchmarks.work import Batch, Job
from pipeline.streaming.memory import keep_memory
from pipeline.streaming.pairs import pairs

PASSES = False


def batches(job: Job) -> Iterator[Batch]:
    """Endless batches."""
    import torch

    torch.set_num_threads(1)
    keep_memory()  # as data actors and training workers do
    epoch = 0
    while True:
        yield from pairs(recipe_of(job), epoch)
        epoch += 1
