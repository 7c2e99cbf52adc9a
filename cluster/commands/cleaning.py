"""`clean`: what a run's folder holds that nobody needs any more."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.commands.options import Overrides, RecipePath


def clean(
    recipe: RecipePath,
    overrides: Overrides = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also checkpoints that a run could go on from: it would start anew.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it. Without this nothing is touched.")] = False,
) -> None:
    """Show what may go from a run's folder and how much that frees; with --yes remove it.

    Weights, results, reports and logs stay. Do not remove anything while a run of that name is going on.

    Example: [bold]pseudolabel clean recipe.yaml --yes[/]
    """
    from cluster.reports.formatting import amount
    from cluster.reports.tables import leftovers_table
    from cluster.reports.terminal import say
    from pipeline.recipe import load_recipe
    from trainers.running.leftovers import discard, leftovers
    from trainers.running.runs import RunFolder

    loaded = load_recipe(recipe, overrides or [])
    found = leftovers(loaded)
    going = [leftover for leftover in found if everything or not leftover.needed]
    if found:
        say(leftovers_table(found, going))
    size, url = amount(sum(leftover.size for leftover in going), "B"), RunFolder(loaded).url
    if not going:
        say(f"nothing in {url} may go{' but with --all' if found else ''}")
    elif yes:
        discard(loaded, going)
        say(f"{size} are freed in {url}")
    else:
        say(f"{size} in {url} may go: --yes removes them")
