"""What an expert would write by hand with OpenCV: DataLoader workers, one decode, all pairs written straight into the batch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.peers import columns_of, crop_into, pairs_into
from benchmarks.work import Batch, Job, forever, members

PASSES = False


class _Batches(IterableDataset[dict[str, torch.Tensor]]):
    def __init__(self, job: Job) -> None:
        self._job = job

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        cv2.setNumThreads(0)
        job, info = self._job, get_worker_info()
        assert info is not None
        shards = job.shards[info.id :: info.num_workers]
        photos = (photo for shard in (shards if job.center else forever(shards)) for photo in members(shard))
        aside = np.empty((job.size, job.size, 3), np.uint8)
        while True:
            encoded = list(islice(photos, job.batch))
            if not encoded:
                return
            columns = columns_of(job, len(encoded))
            for row, data in enumerate(encoded):
                photo = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
                image = columns["image"][row] if "image" in columns else aside
                crop_into(photo, image, job)
                pairs_into(columns, row, image, job)
            yield {name: torch.from_numpy(column) for name, column in columns.items()}


def batches(job: Job) -> Iterator[Batch]:
    """Endless batches."""
    loader: DataLoader[Any] = DataLoader(_Batches(job), batch_size=None, num_workers=job.workers)
    for batch in loader:
        yield {name: column.numpy() for name, column in batch.items()}
