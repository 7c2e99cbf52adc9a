"""`clean`: removes what is no longer needed from a run's folder."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.commands.options import Overrides, RecipePath


def clean(
    recipe: RecipePath,
    overrides: Overrides = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also checkpoints that a run could resume from: it would start again.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is shown. Without this option nothing is removed.")] = False,
) -> None:
    """Show what can be removed from a run's folder and how much that frees; with --yes remove it.

    Weights, results, reports and logs stay. Do not use --yes while a run of that name is going on.

    Example: [bold]pseudolabel clean recipe.yaml --yes[/]
    """
    from cluster.reports.formatting import amount
    from cluster.reports.tables import leftovers_table
    from cluster.reports.terminal import print_out
    from pipeline.recipe import load_recipe
    from trainers.running.leftovers import discard, leftovers
    from trainers.running.runs import RunFolder

    loaded = load_recipe(recipe, overrides or [])
    found = leftovers(loaded)
    going = [leftover for leftover in found if everything or not leftover.needed]
    if found:
        print_out(leftovers_table(found, going))
    size, url = amount(sum(leftover.size for leftover in going), "B"), RunFolder(loaded).url
    if not going:
        print_out(f"nothing in {url} can be removed{' without --all' if found else ''}")
    elif yes:
        discard(loaded, going)
        print_out(f"{size} freed in {url}")
    else:
        print_out(f"{size} in {url} can be removed: use --yes")
