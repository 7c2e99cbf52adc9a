"""Features by Ray Data as its documentation infers in batches: `read_images`, a `map`, and `map_batches` on a pool of actors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.contenders import plain_ray
from benchmarks.features import Network, as_files
from benchmarks.peers import crop_tensor
from benchmarks.work import Batch, Job

PASSES = False
_TIMES = 8


class _Model:
    """The actor of the pool."""

    def __init__(self, job: Job) -> None:
        self._network = Network(job)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"vector": self._network(np.ascontiguousarray(batch["image"]))}


def batches(job: Job) -> Iterator[Batch]:
    """Endless batches."""
    import ray

    def crop(row: dict[str, Any]) -> dict[str, Any]:
        import torch

        return {"image": crop_tensor(torch.from_numpy(row["image"]).permute(2, 0, 1), job).permute(1, 2, 0).numpy()}

    with plain_ray.quietly() as data:
        read = data.read_images(as_files(job) * (1 if job.center else _TIMES), mode="RGB")
        pool = ray.data.ActorPoolStrategy(size=job.workers)
        made = read.map(crop).map_batches(_Model, fn_constructor_args=(job,), batch_size=job.batch, compute=pool, num_cpus=1)
        yield from plain_ray.arriving(made, job)
