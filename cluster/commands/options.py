"""Arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)]
Run = Annotated[
    str, typer.Argument(metavar="RUN", help="Folder of a finished run, such as runs/photos; a path or URL.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="a.b=value",
        help="Change a key of the recipe, such as training.epochs=5; may be repeated.",
        show_default=False,
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start again, even if an earlier run of this recipe left a checkpoint.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Say what would be done, the disk that it needs and what is missing; then measure for some seconds how long it "
        "would take and the memory that it needs. Nothing is kept.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to stdout in place of tables.")]
Result = Annotated[
    str | None,
    typer.Option(
        "--result",
        metavar="URL",
        help="Where to write the command's result as JSON; by default beside its output, as `<command>.result.json`.",
        show_default=False,
    ),
]
PHASES = {"finetune-pretrained": "from pretrained weights", "finetune-random": "from random weights"}
"""Titles for the parts of a command, by the `stage` of their log lines."""
