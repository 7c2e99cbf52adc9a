"""What the contenders on plain Ray Data share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.work import Batch, Job

_TIMES = 40


@contextmanager
def quietly() -> Iterator[Any]:
    """Silence Ray Data's progress bars and log lines; starts Ray if it does not run."""
    import logging
    import os

    import ray
    import ray.data

    if not ray.is_initialized():
        cpus = (os.cpu_count() or 1) + 1
        ray.init("local", num_cpus=cpus, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    with ray.data.DataContext.current(context):
        yield ray.data


def repeated(job: Job) -> list[str]:
    """The shards, repeated as often as a measurement can need; once for a check."""
    return list(job.shards) * (1 if job.center else _TIMES)


def arriving(dataset: Any, job: Job) -> Iterator[Batch]:
    """The batches of a dataset's iterator with default settings."""
    yield from dataset.iter_batches(batch_size=job.batch, batch_format="numpy")
