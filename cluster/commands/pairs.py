"""`tasks` and `preview`: which pairs there are, and pictures of them."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.commands.options import Overrides, RecipePath


def tasks(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A task, to see its parameters.", show_default=False)
    ] = None,
) -> None:
    """List the pretext tasks, or one task's parameters with their meaning and defaults.

    Example: [bold]pseudolabel tasks jigsaw[/]
    """
    from cluster.show import say, task_panels, tasks_table
    from pipeline.errors import UserError
    from pipeline.recipe.suggest import unknown_name
    from pipeline.tasks import registry

    known = registry()
    if name is None:
        say(tasks_table(known))
    elif name in known:
        say(*task_panels(name, known[name]))
    else:
        raise UserError(unknown_name("task", name, known))


def preview(
    recipe: RecipePath,
    output: Annotated[str, typer.Option("--output", "-o", metavar="PNG", help="Where the picture goes.")] = "sheet.png",
    samples: Annotated[int, typer.Option(min=1, max=100, help="Rows: samples from all over the corpus.")] = 5,
    epoch: Annotated[int, typer.Option(min=0, help="Whose drawing to show; each epoch draws anew.")] = 0,
    overrides: Overrides = None,
) -> None:
    """Draw real pairs from the corpus as a contact sheet, each task's label written under its input.

    Example: [bold]pseudolabel preview recipe.yaml -o sheet.png --samples 8[/]
    """
    from cluster.progress import counted
    from cluster.show import say
    from pipeline.preview import save, sheet
    from pipeline.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    with counted("indexing", "shard") as progress:
        picture = sheet(loaded, samples, epoch, progress)
    save(picture, output)
    say(f"{output}: {picture.width} x {picture.height} pixels")
