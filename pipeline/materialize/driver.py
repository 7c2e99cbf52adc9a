"""Runs a job on Ray: shard numbers -> a pool of actors -> a row of counts each; and the driver that watches it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import RunError, ShardError, UserError
from pipeline.materialize.commit import CommitRecord, failure_url, load_failure, save_failure
from pipeline.materialize.folder import State, claim, read_state
from pipeline.materialize.job import Job, OutputError, ShardWorker
from pipeline.materialize.publish import publish
from pipeline.rendering.quarantine import check_budget
from pipeline.storage import is_local, remove
from pipeline.storage.files import pause
from pipeline.streaming.memory import keep_memory
from pipeline.streaming.metrics import Gauges, Meter
from pipeline.streaming.pace import give_way, plan_settings

DONE, FAILED, STOPPED = "done", "failed", "stopped"
_TRIES = 3
_NAMED = 5
_MOST_INIT_DEATHS = 10


@dataclass(frozen=True)
class Progress:
    """How far a job is: shards and samples of the whole corpus, including those of earlier runs."""

    shards: int
    shards_done: int
    samples: int
    samples_done: int
    quarantined: int
    failed: int


@dataclass(frozen=True)
class JobReport:
    """The result of a job.

    Args:
        out: URL of the folder.
        shards: input shards.
        made: those of them that this run did.
        samples: samples in the shards that are done.
        rows: rows of all outputs, such as pairs.
        quarantined: samples that are missing from an output.
        failed: reason by the name of each shard that failed.
        seconds: how long this run took.
    """

    out: str
    shards: int
    made: int
    samples: int
    rows: int
    quarantined: int
    failed: dict[str, str]
    seconds: float


def materialize(
    job: Job, retry_failed: bool = False, progress: Callable[[Progress], None] | None = None, here: bool = False
) -> JobReport:
    """Do a job, each shard exactly once; after an interruption the same call completes it.

    Each input shard is one piece of work: its outputs are written, each whole or not at all, and then its commit record. A shard
    that has one is never read again.

    Args:
        job: what is made of each shard.
        retry_failed: try those shards again that failed in an earlier run.
        progress: called after each shard.
        here: do it in this process, one shard after another, without Ray; else Ray must be connected.

    Returns:
        What is on disk now. It names the shards that failed; the manifest is written without them.

    Raises:
        UserError: the folder belongs to another job.
        BudgetExceeded: too many samples cannot be used.
        RunError: storage refused an output, or the job failed; committed shards are kept.
    """
    started = time.perf_counter()
    state = read_state(job)
    shards = set(range(len(job.corpus.urls)))
    todo = sorted(shards.difference(state.done, () if retry_failed else state.failed))
    made: set[int] = set()
    if todo or not state.finished:
        claim(job)
        job.prepare()
        made = _run(job, todo, state, progress, here)
    done = sorted({*state.done, *made})
    totals = publish(job, done)
    broken = [load_failure(job.out, job.stem(i)) for i in sorted(shards.difference(done))]
    reasons = {row["shard"]: row["reason"] for row in broken}
    seconds = time.perf_counter() - started
    return JobReport(job.out, totals.shards, len(made), totals.samples, totals.pairs, totals.quarantined, reasons, seconds)


def _run(job: Job, todo: list[int], state: State, progress: Callable[[Progress], None] | None, here: bool) -> set[int]:
    """Do the shards of `todo`; returns those that are done."""
    corpus = job.corpus
    counted = int(corpus.counts[state.done].sum()) if state.done else 0
    done: set[int] = set()
    broken: set[int] = set()
    seen = bad = 0
    some: list[dict[str, str]] = []
    gauges = Gauges(job.recipe.name, job.command, job.recipe.failures.budget)

    def report() -> None:
        gauges.render(len(state.done) + len(done), len(broken), len(corpus.urls), seen, bad)
        if progress:
            progress(Progress(len(corpus.urls), len(state.done) + len(done), corpus.samples, counted, bad, len(broken)))

    if not todo:
        return done
    report()
    with closing(_rows_here(job, todo) if here else _rows(job, todo)) as rows:  # on any exit, the actors stop
        for row in rows:
            i, status = int(row["shard"]), row["status"]
            if i in done:  # a node was lost after it had done the shard, and the shard came again
                continue
            if status == STOPPED:
                raise RunError(
                    f"{row['words']}\nWhat is committed stays ({len(done)} shards of this run); the same command goes on"
                )
            if status == FAILED:
                broken.add(i)
            else:
                done.add(i)
                counted += int(corpus.counts[i])
                seen, bad = seen + int(row["samples"]), bad + int(row["quarantined"])
                if row["words"] and len(some) < _NAMED:
                    some.append({"shard": job.shard(i), "key": row["key"], "reason": row["words"]})
                check_budget(job.recipe.failures.budget, bad, seen, lambda: some)
            report()
    return done


def _rows(job: Job, todo: list[int]) -> Generator[dict[str, Any], None, None]:
    """The result of each shard as a row, in the order in which they finish."""
    import ray
    import ray.data

    place, context = job.recipe.placement, plan_settings(ordered=False)
    context.execution_no_progress_timeout_s = -1  # a shard may take its time
    context.max_consecutive_actor_init_deaths = _MOST_INIT_DEATHS
    with ray.data.DataContext.current(context):
        dataset = (
            ray.data.range(len(todo), override_num_blocks=1)
            .repartition(target_num_rows_per_block=1)
            .map_batches(
                _ShardActor,
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=place.actors),
                num_cpus=place.cpus,
                num_gpus=place.gpus,
                fn_constructor_args=(job, np.asarray(todo, np.int64), place.threads),
            )
        )
        # With a split, an actor on this node runs the plan; in this process Ray would print a harmless error (its issue 53727).
        (split,) = dataset.streaming_split(1)
    try:
        yield from split.iter_rows()
    except ray.exceptions.RayError as error:
        raise RunError(
            f"the {job.command} was stopped by Ray: {_first_line(error)}; the same command goes on from there"
        ) from error


def _rows_here(job: Job, todo: list[int]) -> Generator[dict[str, Any], None, None]:
    """Do the shards in this process; rows as of `_rows`."""
    actor = _ShardActor(job, np.asarray(todo, np.int64), job.recipe.placement.threads, here=True)
    for number in range(len(todo)):
        for row in actor({"id": np.array([number])}):
            yield {name: value[0] for name, value in row.items()}


class _ShardActor:
    """Actor that does one shard a call, commits it, and returns the result as a row; failures of known kinds are rows, too.

    Args:
        job: the job.
        todo: the shards, by their place in the corpus.
        threads: CPU threads.
        here: whether it is no actor, but runs in the caller's process.
    """

    def __init__(self, job: Job, todo: np.ndarray, threads: int, here: bool = False) -> None:
        if not here:
            give_way()
            keep_memory()
        self._job, self._todo, self._threads = job, todo, threads
        self._worker: ShardWorker | None = None
        self._meter = Meter(job.recipe.name, job.command)

    def __call__(self, batch: dict[str, np.ndarray]) -> Generator[dict[str, Any], None, None]:
        for number in batch["id"]:
            row = self._one(int(self._todo[number]))
            yield {name: np.array([value], object if isinstance(value, str) else None) for name, value in row.items()}

    def _one(self, i: int) -> dict[str, Any]:
        started, job = time.perf_counter(), self._job
        row = {"shard": i, "status": DONE, "samples": 0, "pairs": 0, "quarantined": 0, "words": "", "key": "", "seconds": 0.0}
        try:
            record = self._record(i)
            row |= {"samples": record.samples, "pairs": sum(o.pairs for o in record.outputs), "quarantined": record.quarantined}
            if record.bad:
                row |= {"key": record.bad[0].key, "words": record.bad[0].reason}
        except ShardError as error:
            row |= self._fail(i, error.reason)
        except OutputError as error:
            row |= {"status": STOPPED, "words": str(error)}
        except (RunError, UserError) as error:
            row |= {"status": STOPPED, "words": f"{job.shard(i)}: {error}"}
        return {**row, "seconds": time.perf_counter() - started}

    def _record(self, i: int) -> CommitRecord:
        """The shard's record: the one that is there, or that of doing the shard now."""
        job = self._job
        try:
            return CommitRecord.load(job.out, job.stem(i))
        except (OSError, ValueError):  # not done, or damaged
            pass
        if self._worker is None:
            self._worker = job.worker(self._threads, self._meter.rendered)
        for attempt in range(_TRIES):
            try:
                record = self._worker(i)
                try:
                    record.save(job.out, job.stem(i))
                    self._meter.wrote(sum(output.bytes for output in record.outputs))
                    remove(failure_url(job.out, job.stem(i)))
                except OSError as error:
                    raise OutputError(f"{job.out} cannot be written: {error}") from error
                return record
            except OutputError:
                if is_local(job.out) or attempt == _TRIES - 1:  # a full disk stays full
                    raise
                pause(attempt + 2)
        raise AssertionError("the last attempt returns or raises")

    def _fail(self, i: int, reason: str) -> dict[str, Any]:
        job = self._job
        try:
            save_failure(job.out, job.stem(i), job.shard(i), reason)
        except OSError as error:
            return {"status": STOPPED, "words": f"{job.out} cannot be written: {error}"}
        return {"status": FAILED, "words": reason}


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "cause", None) or error
    return next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
