"""`transfer`: many starts on many data sets, a run each, and one table."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.dry_running import say_plan
from cluster.commands.interrupts import interruptible
from cluster.commands.options import DryRun, Overrides, RecipePath, Result

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

_RESUMES = "the same command goes on with the cells that are missing"


def transfer(
    recipe: RecipePath,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="URL",
            help="Folder for the cells and the table; by default `transfer` in the run's folder.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    result: Result = None,
) -> None:
    """Try starts on labelled data sets, problems, fractions of the labels and seeds: one table of all.

    The recipe's section `transfer` names them. Each cell is a run of `finetune` or `evaluate` in a folder of its own. Killed at
    any moment, the same command goes on with the cells that are missing. A cell that fails is named with its reason, and the
    others go on; exit code 1 then. Leaves transfer.json, transfer.png and transfer.html.

    Example: [bold]pseudolabel transfer recipe.yaml --out runs/transfer[/]
    """
    from cluster.jobs.command_result import recorded
    from cluster.reports.progress import counted
    from cluster.reports.terminal import print_out
    from cluster.reports.transfer import failed_cells, transfer_table, write_transfer
    from pipeline.errors import RunError
    from pipeline.recipe import load_recipe
    from trainers.running.session import check_early

    began = time.time()
    loaded = load_recipe(recipe, overrides or [])
    out = out or transfer_folder(loaded)
    if dry_run:
        from trainers.planning.transfers import estimate_transfer, transfer_plan

        return say_plan("transfer", lambda: transfer_plan(loaded, out), lambda: estimate_transfer(loaded, out, began))
    with recorded("transfer", result) as outcome:
        check_early(loaded)
        from trainers.downstream.transfer import section
        from trainers.downstream.transfer import transfer as run

        section(loaded)
        outcome.begin(transfer_result(out))
        with interruptible(outcome, _RESUMES), counted("transfer", "cell") as progress:
            found = run(loaded, out, progress=progress)
        failed = failed_cells(found)
        outcome.counts = {"cells": len(found["cells"]), "failed": len(failed)}
        outcome.artefacts = write_transfer(found, loaded.name, out)
        print_out(transfer_table(found), *failed, f"heat map: {outcome.artefacts['transfer.png']}")
        if failed:
            raise RunError(f"{len(failed)} of {len(found['cells'])} cells failed; {_RESUMES}")


def transfer_folder(recipe: Recipe) -> str:
    """The folder of a transfer if `--out` names none."""
    from trainers.running.runs import RunFolder

    return RunFolder(recipe).path("transfer")


def transfer_result(out: str) -> str:
    """The URL of the command's result: in its folder, beside its table."""
    from cluster.jobs.command_result import RESULT
    from pipeline.storage import absolute, join

    return join(absolute(out), f"transfer.{RESULT}")
