"""SPDL's pipeline of threads; torchvision decodes and transforms in them, since SPDL's own decoder needs a system with FFmpeg."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from spdl.pipeline import PipelineBuilder

from benchmarks.peers import crop_tensor, pairs_of_tensor
from benchmarks.work import Batch, Job, forever, members

PASSES = True


def batches(job: Job) -> Iterator[Batch]:
    """Endless batches."""
    import torch
    from torch.utils.data import default_collate
    from torchvision.io import ImageReadMode, decode_jpeg

    torch.set_num_threads(1)

    def photos() -> Iterator[bytes]:
        for shard in job.shards if job.center else forever(job.shards):
            yield from members(shard)

    def make(encoded: bytes) -> dict[str, Any]:
        photo = decode_jpeg(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), ImageReadMode.RGB)
        return pairs_of_tensor(crop_tensor(photo, job), job)

    pipeline = (
        PipelineBuilder()
        .add_source(photos())
        .pipe(make, concurrency=job.workers)
        .aggregate(job.batch)
        .pipe(default_collate)
        .add_sink(3)
        .build(num_threads=job.workers + 1)
    )
    with pipeline.auto_stop():
        for batch in pipeline:
            yield {name: column.numpy() for name, column in batch.items()}
