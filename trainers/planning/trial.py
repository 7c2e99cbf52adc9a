"""Tries a run for some seconds, on the cluster and with the processes of the run, and says how long all of it will take."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import RunError, ShardError
from pipeline.materialize.job import Job
from pipeline.recipe.outputs import Storage, Tracking
from pipeline.recipe.schema import Recipe
from pipeline.storage import is_local
from pipeline.streaming.connection import cluster_address
from trainers.learning.loop import TrainingJob, train
from trainers.running.fit import fit
from trainers.running.runs import RunFolder

SECONDS = 15.0
"""How long steps are measured."""

_LEAST = 6
"""The fewest steps, or chunks of samples, that are measured; the first third of them is left out, as things settle."""


@dataclass(frozen=True)
class Trial:
    """What was measured.

    Args:
        start: seconds from the call to the end of the first step, or chunk of samples.
        each: seconds a step, once the first ones are over; of a job, seconds a sample in each actor.
        measured: how many steps, or samples, that is the mean of.
    """

    start: float
    each: float
    measured: int


@contextmanager
def elsewhere(recipe: Recipe) -> Iterator[Recipe]:
    """The recipe with its results in a folder that is removed, and without trackers.

    The folder is on this machine where all processes are; else it lies beside the run's, where all nodes see it.
    """
    plain = {"tracking": Tracking(tensorboard=False)}
    if cluster_address() is None:
        with tempfile.TemporaryDirectory(prefix="pseudolabel-") as place:
            yield recipe.model_copy(update={**plain, "storage": Storage(runs=place)})
        return
    changed = recipe.model_copy(update={**plain, "name": f"{recipe.name}-dry-run"})
    folder = RunFolder(changed)
    try:
        yield changed
    finally:
        for stage in folder.stages():
            folder.clear(stage)
        if is_local(folder.url):
            shutil.rmtree(Path(folder.url), ignore_errors=True)


def try_training(job: TrainingJob, recipe: Recipe, seconds: float = SECONDS) -> Trial:
    """Train for some seconds; Ray must be connected, and the recipe is one of `elsewhere`.

    Raises:
        RunError: the run fails.
    """
    began = time.time()
    answer = try_on_workers(_train, {"job": job, "seconds": seconds}, recipe, job.stage, job.run_log)
    return settled_pace(began, answer["times"])


def try_on_workers(
    work: Callable[[dict[str, Any]], None], config: dict[str, Any], recipe: Recipe, stage: str, run_log: Any
) -> dict[str, Any]:
    """Run `work(config)` on the recipe's training workers; it must set the run log's result, which is returned.

    Raises:
        RunError: the run fails.
    """
    import ray

    fit(work, config, recipe, stage, run_log, [])
    answer: dict[str, Any] = ray.get(run_log.result.remote())
    return answer


def try_job(job: Job, seconds: float = SECONDS) -> Trial:
    """Do some shards of a job in an actor's place for some seconds; nothing is kept. Ray must be connected.

    Raises:
        RunError: no shard can be read, or the job fails.
    """
    import ray

    began, place = time.time(), job.recipe.placement
    try_it = ray.remote(num_cpus=place.cpus, num_gpus=place.gpus, max_retries=0)(_do)
    counts, times, ready = ray.get(try_it.remote(job, place.threads, seconds))
    if not times:
        raise RunError("no shard can be read, so that nothing can be measured; `pseudolabel inspect` says why")
    if len(times) == 1:  # one chunk is the whole corpus
        return Trial(times[0] - began, (times[0] - ready) / max(1, counts[0]), counts[0])
    first = _first_that_counts(times)
    samples = sum(counts[first + 1 :])
    return Trial(times[0] - began, (times[-1] - times[first]) / samples, samples)


class Stopwatch:
    """Called after each step of every rank: says whether enough steps were measured, the same to all.

    Args:
        seconds: how long to measure.

    Attributes:
        times: Unix time at the end of each step.
    """

    def __init__(self, seconds: float) -> None:
        self.times: list[float] = []
        self._seconds = seconds

    def __call__(self) -> bool:
        import torch
        from ray.train.collective import broadcast_from_rank_zero

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.time())
        over = len(self.times) >= _LEAST and self.times[-1] - self.times[0] >= self._seconds
        return bool(broadcast_from_rank_zero(over))


def settled_pace(began: float, times: list[float]) -> Trial:
    """The pace of steps without the first third, which fill the buffers.

    Args:
        began: Unix time at which the run was asked for.
        times: Unix time at the end of each step.
    """
    first = _first_that_counts(times)
    steps = max(1, len(times) - 1 - first)
    return Trial(times[0] - began, (times[-1] - times[first]) / steps, steps)


def _first_that_counts(times: list[float]) -> int:
    return len(times) // 3 if len(times) > _LEAST else 0


def _train(config: dict[str, Any]) -> None:
    import ray
    import ray.train

    job, watch = config["job"], Stopwatch(config["seconds"])
    if train(job, watch) is not None and ray.train.get_context().get_world_rank() == 0:
        ray.get(job.run_log.set_result.remote({"times": watch.times}))


class _Enough(Exception):
    """Ends a trial of a job in the middle of a shard."""


def _do(job: Job, threads: int, seconds: float) -> tuple[list[int], list[float], float]:
    """Samples of each chunk, the Unix time at its end, and that at the start of the first."""
    counts: list[int] = []
    times: list[float] = []

    def on_chunk(samples: int, *_: Any) -> None:
        counts.append(samples)
        times.append(time.time())
        if len(times) >= _LEAST and times[-1] - times[0] >= seconds:
            raise _Enough

    with tempfile.TemporaryDirectory() as out:
        here = replace(job, out=out)
        for folder in here.folders:
            Path(out, folder).mkdir()
        worker, ready = here.worker(threads, on_chunk), time.time()
        with suppress(_Enough):
            for i in range(len(job.corpus.urls)):
                with suppress(ShardError):  # the job will say so
                    worker(i)
    return counts, times, ready
