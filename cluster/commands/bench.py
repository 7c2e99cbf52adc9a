"""`bench`: measures where a recipe's time goes."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import Annotated

import typer

from cluster.commands.options import AsJson, Overrides, RecipePath


def bench(
    recipe: RecipePath,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long the stream is measured, and how long the network.")] = 10.0,
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Measure a recipe's stages on the machine or cluster that it will run on, and say which one limits it.

    Pairs are made and sent as in training, to a worker that only receives them; then the network trains on one batch.

    Example: [bold]pseudolabel bench recipe.yaml --set placement.actors=4[/]
    """
    from cluster.reports.bench import bench_tables
    from cluster.reports.progress import named_parts
    from cluster.reports.terminal import print_json, print_out
    from pipeline.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    # Ray prints to stdout that its actors were stopped at work.
    with named_parts("measuring") as on_progress, redirect_stdout(io.StringIO()):
        from trainers.planning.bench import bench as run

        found = run(loaded, seconds, on_progress)
    if json:
        print_json(asdict(found))
    else:
        print_out(*bench_tables(found))
