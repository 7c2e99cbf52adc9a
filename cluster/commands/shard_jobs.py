"""What `render`, `embed`, `cluster` and `label` share: jobs that write a corpus shard by shard, and resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.interrupts import interruptible

if TYPE_CHECKING:
    from cluster.jobs.command_result import CommandResult
    from pipeline.materialize.driver import JobReport, Progress
    from pipeline.recipe import Recipe

RESUMES = "committed shards are kept, and the same command goes on from there"

RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Try again the shards that failed in an earlier run.")]


@contextmanager
def shard_job(
    command: str, recipe: Recipe, out: str, outcome: CommandResult, doing: str
) -> Iterator[tuple[Callable[[int, int], None], Callable[[Progress], None]]]:
    """Begin a command's result, connect to Ray, let no other process do the same work, and show progress while the block runs.

    Args:
        command: its name.
        recipe: what it works on, and where.
        out: the folder that it writes.
        outcome: its result.
        doing: what it does, for the line of progress, such as "rendering".

    Yields:
        What shows the indexing of shards, called with (done, total), and what shows the job, called after each shard.
    """
    from cluster.jobs.command_result import result_url
    from cluster.reports.progress import counted, rendering
    from pipeline.storage import absolute
    from trainers.running.exclusive import exclusive
    from trainers.running.preflight import check_render
    from trainers.running.session import connect

    outcome.begin(result_url(out, command))
    with interruptible(outcome, RESUMES):
        connect(recipe, check_render)
        silence_data()
        with exclusive(f"{command} into {absolute(out)}"), counted("indexing", "shard") as indexing, rendering(doing) as progress:
            yield indexing, progress


def record_job(outcome: CommandResult, report: JobReport, what: str, made: str = "made") -> None:
    """Fill in a job's result.

    Args:
        outcome: the result.
        report: what the job did.
        what: the name, in the result, of the rows that it wrote.
        made: the name, in the result, of the shards that this run did.
    """
    from pipeline.storage import join

    counts = {"shards": report.shards, made: report.made, "samples": report.samples, what: report.rows}
    outcome.counts |= {**counts, "quarantined": report.quarantined, "failed": len(report.failed)}
    names = ("manifest.json", "index.parquet", "shards.parquet", "quarantine.parquet")
    outcome.artefacts = {what: report.out, **{name: join(report.out, name) for name in names}}


def refuse_failed(report: JobReport) -> None:
    """Raise RunError if any of a job's shards failed."""
    from pipeline.errors import RunError

    if report.failed:
        shard, reason = next(iter(report.failed.items()))
        raise RunError(
            f"{len(report.failed)} of {report.shards} shards failed, the others are done. The first: {shard}: {reason}\n"
            "Fix that and run the same command with --retry-failed"
        )


def silence_data() -> None:
    """Silence Ray Data's log lines, which would be printed between ours."""
    import logging

    import ray.data  # Ray sets its logger up when it is loaded

    logging.getLogger(ray.data.__name__).setLevel(logging.ERROR)
