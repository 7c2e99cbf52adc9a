"""A PyTorch DataLoader over `webdataset`, with torchvision's decoder and its v2 transforms on tensors."""

from __future__ import annotations

from collections.abc import Iterator

import webdataset
from torch.utils.data import DataLoader, default_collate
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks.peers import crop_tensor, pairs_of_tensor
from benchmarks.work import Batch, Job

PASSES = True


def batches(job: Job) -> Iterator[Batch]:
    """Endless batches."""
    import torch

    def make(sample: dict[str, bytes]) -> dict[str, torch.Tensor]:
        photo = decode_jpeg(torch.frombuffer(bytearray(sample["jpg"]), dtype=torch.uint8), ImageReadMode.RGB)
        return pairs_of_tensor(crop_tensor(photo, job), job)

    dataset = webdataset.WebDataset(list(job.shards), shardshuffle=False, resampled=not job.center).map(make)
    if not job.center:
        dataset = dataset.repeat()
    loader = DataLoader(dataset.batched(job.batch, collation_fn=default_collate), batch_size=None, num_workers=job.workers)
    for batch in loader:
        yield {name: column.numpy() for name, column in batch.items() if not name.startswith("__")}
