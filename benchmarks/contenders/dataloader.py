"""A PyTorch DataLoader over `webdataset`, with torchvision's decoder and its v2 transforms on tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import webdataset
from torch.utils.data import DataLoader, default_collate

from benchmarks.peers import crop_tensor, decoded, pairs_of_tensor
from benchmarks.work import Batch, Job

PASSES = True


def batches(job: Job) -> Iterator[Batch]:
    """Endless batches."""
    return loaded(job, lambda photo: pairs_of_tensor(crop_tensor(decoded(photo), job), job))


def loaded(job: Job, make: Callable[[bytes], dict[str, Any]]) -> Iterator[Batch]:
    """Endless batches of what `make` returns for encoded photos, made by worker processes."""
    dataset = webdataset.WebDataset(list(job.shards), shardshuffle=False, resampled=not job.center)
    dataset = dataset.map(lambda sample: make(sample["jpg"]))
    if not job.center:
        dataset = dataset.repeat()
    loader = DataLoader(dataset.batched(job.batch, collation_fn=default_collate), batch_size=None, num_workers=job.workers)
    for batch in loader:
        yield {name: column.numpy() for name, column in batch.items() if not name.startswith("__")}
