"""`tasks`, `preview` and `colours`: the pretext tasks, pictures of their pairs, and palettes learnt from a corpus."""

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
    from cluster.reports.terminal import print_out, task_panels, tasks_table
    from pipeline.errors import UserError
    from pipeline.recipe.suggest import unknown_name
    from pipeline.tasks import registry

    known = registry()
    if name is None:
        print_out(tasks_table(known))
    elif name in known:
        print_out(*task_panels(name, known[name]))
    else:
        raise UserError(unknown_name("task", name, known))


def preview(
    recipe: RecipePath,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="The file to write: a .png, or a .html page.")
    ] = "sheet.png",
    samples: Annotated[int, typer.Option(min=1, max=100, help="Number of rows: samples spread over the corpus.")] = 5,
    epoch: Annotated[int, typer.Option(min=0, help="The epoch whose random draws to show; each epoch draws again.")] = 0,
    all_tasks: Annotated[
        bool, typer.Option("--all-tasks", help="Show every task, with defaults for those that the recipe lacks.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Draw real pairs from the corpus as a contact sheet or a page, each task's label written under its input.

    Example: [bold]pseudolabel preview recipe.yaml -o sheet.png --samples 8[/]
    """
    from cluster.pictures.preview import page, save, sheet, with_all_tasks
    from cluster.reports.progress import counted
    from cluster.reports.terminal import print_out
    from pipeline.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    if all_tasks:
        loaded = with_all_tasks(loaded)
    with counted("indexing", "shard") as progress:
        if output.lower().endswith(".html"):
            save(page(loaded, samples, epoch, progress), output)
            print_out(output)
        else:
            picture = sheet(loaded, samples, epoch, progress)
            save(picture, output)
            print_out(f"{output}: {picture.width} x {picture.height} pixels")


def colours(
    recipe: RecipePath,
    count: Annotated[int, typer.Option(min=2, max=1024, help="Number of colours in the palette.")] = 64,
    samples: Annotated[int, typer.Option(min=1, help="Number of crops to sample.")] = 2048,
    overrides: Overrides = None,
) -> None:
    """Learn from the corpus a palette for `next_pixel` and the frequencies for `quantised_colorization`, and print them as part
    of a recipe.

    Example: [bold]pseudolabel colours recipe.yaml --count 128 > colours.yaml[/]
    """
    import yaml

    from cluster.pictures.palette import learn_colours
    from pipeline.recipe import load_recipe

    learnt = learn_colours(load_recipe(recipe, overrides or []), count, samples)
    typer.echo(yaml.safe_dump({"tasks": learnt}, default_flow_style=None, sort_keys=False, width=120), nl=False)
