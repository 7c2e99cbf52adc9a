"""Features by a plain loop: decode and resize with torchvision, then the network, on one core and in batches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from benchmarks.features import Network
from benchmarks.peers import crop_tensor, decoded
from benchmarks.work import Batch, Job, forever, members

PASSES = False


def batches(job: Job) -> Iterator[Batch]:
    """Endless batches."""
    network = Network(job)
    photos = (photo for shard in forever(job.shards) for photo in members(shard))
    while True:
        crops = [crop_tensor(decoded(photo), job).permute(1, 2, 0).numpy() for photo in islice(photos, job.batch)]
        yield {"vector": network(np.stack(crops))}
