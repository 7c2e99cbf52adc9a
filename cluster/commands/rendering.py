"""`render` and `verify`: a corpus of pairs on disk, and whether what a job wrote is what its manifest says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.dry_running import say_plan
from cluster.commands.options import AsJson, DryRun, Overrides, RecipePath, Result
from cluster.commands.shard_jobs import RetryFailed, record_job, refuse_failed, shard_job

if TYPE_CHECKING:
    from pipeline.recipe import Recipe


def render(
    recipe: RecipePath,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="URL", help="Folder for the pairs; a path or URL.", show_default=False)
    ],
    retry_failed: RetryFailed = False,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    result: Result = None,
) -> None:
    """Render a corpus to pairs on disk, as WebDataset or Parquet.

    Each shard is written exactly once. If the command is killed at any moment, the same command resumes; finished shards are not
    read again. The recipe's section `render` says how pairs are stored. Exit code 1 if shards failed.

    Example: [bold]pseudolabel render recipe.yaml --out pairs/ --set render.epochs=4[/]
    """
    from cluster.jobs.command_result import recorded
    from cluster.reports.terminal import print_out, render_table
    from pipeline.materialize.run import check
    from pipeline.materialize.run import render as run
    from pipeline.recipe import load_recipe

    if dry_run:
        return _rehearse(load_recipe(recipe, overrides or []), out)
    with recorded("render", result) as outcome:
        loaded = load_recipe(recipe, overrides or [])
        check(loaded, out)
        with shard_job("render", loaded, out, outcome, "rendering") as shown:
            report = run(loaded, out, retry_failed, *shown)
        record_job(outcome, report, "pairs", made="rendered")
        print_out(render_table(report))
        refuse_failed(report)


def _rehearse(loaded: Recipe, out: str) -> None:
    from pipeline.materialize.dry_run import render_plan
    from pipeline.materialize.run import render_job
    from trainers.planning.estimates import estimate_job

    say_plan("render", lambda: render_plan(loaded, out), lambda: estimate_job(render_job, loaded, out))


def verify(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="Folder of a rendered corpus, of features or of labels; a path or URL.", show_default=False
        ),
    ],
    deep: Annotated[
        bool, typer.Option("--deep", help="Render a random share of the shards again and compare every byte.")
    ] = False,
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="The size of that share.")] = 0.05,
    json: AsJson = False,
    result: Result = None,
) -> None:
    """Check a rendered corpus, features or labels against their manifest.

    It checks every file's checksum and count, and that every sample of the original corpus is a row or in the quarantine
    table. Exit code 1 if anything is wrong.

    Example: [bold]pseudolabel verify pairs/ --deep[/]
    """
    from dataclasses import asdict

    from cluster.jobs.command_result import recorded, result_url
    from cluster.reports.progress import counted
    from cluster.reports.terminal import print_json, print_out, verify_tables
    from pipeline.materialize.verify import verify as run
    from pipeline.storage import is_writable

    with recorded("verify", result) as outcome:
        if result or is_writable(url):
            outcome.begin(result_url(url, "verify"))
        with counted("verifying", "file") as progress:
            verdict = run(url, share if deep else 0.0, progress=progress)
        found = asdict(verdict)
        outcome.counts = {name: value for name, value in found.items() if isinstance(value, int)}
        outcome.counts["problems"] = len(verdict.problems)
        outcome.artefacts = {"pairs": url}
        if json:
            print_json(found)
        else:
            print_out(*verify_tables(verdict))
        if verdict.problems:
            raise typer.Exit(1)
