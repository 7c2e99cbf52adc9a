"""This project's engine on photos that lie in memory, on one core: check, draw, decode, crop, tasks."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.contenders.ours import recipe_of
from benchmarks.work import Batch, Job, members
from pipeline.draws import sample_id
from pipeline.rendering.renderer import Renderer
from pipeline.shards.corpus import Sample
from pipeline.streaming.memory import keep_memory

PASSES = False


def batches(job: Job) -> Iterator[Batch]:
    """Endless batches."""
    import torch

    torch.set_num_threads(1)
    keep_memory()  # as data actors and training workers do
    render = Renderer(recipe_of(job))
    photos = [photo for shard in job.shards[:2] for photo in members(shard)]
    samples = [Sample(str(i), sample_id(str(i)), photo, "jpg", -1, None) for i, photo in enumerate(photos)]
    epoch = 0
    while True:
        for start in range(0, len(samples) - job.batch + 1, job.batch):
            yield render(samples[start : start + job.batch], epoch).columns
        epoch += 1
