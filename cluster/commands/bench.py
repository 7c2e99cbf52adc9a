"""`bench`: where a recipe's time goes, before hours are spent on it."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import Annotated

import typer

from cluster.commands.options import AsJson, Overrides, RecipePath


def bench(
    recipe: RecipePath,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long the stream is watched, and how long the network.")] = 10.0,
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Measure a recipe's stages on the machine or cluster that it will run on, and say which one limits it.

    Pairs are made and sent as in training, to a worker that only takes them; then the network makes steps on one batch.

    Example: [bold]pseudolabel bench recipe.yaml --set placement.actors=4[/]
    """
    from cluster.reports.bench import bench_tables
    from cluster.reports.progress import busy
    from cluster.reports.terminal import say, say_json
    from pipeline.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    with busy("measuring") as now, redirect_stdout(io.StringIO()):  # Ray says there that its actors were stopped in mid-work
        from trainers.bench import bench as run

        found = run(loaded, seconds, now)
    if json:
        say_json(asdict(found))
    else:
        say(*bench_tables(found))
