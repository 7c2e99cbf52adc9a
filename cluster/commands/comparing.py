"""`compare`: the results of several runs in one table."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.commands.options import AsJson


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Folders of finished runs, such as runs/photos; paths or URLs.", show_default=False
        ),
    ],
    json: AsJson = False,
) -> None:
    """Compare runs: accuracies and pretext metrics, with standard errors.

    Runs whose recipes differ in name and seed alone are one row: the mean over seeds, with its standard error. The keys in which
    other runs differ are listed below, those of `downstream`, too.

    Example: [bold]pseudolabel compare runs/photos-0 runs/photos-1 runs/longer[/]
    """
    from cluster.reports.comparison import compare_runs, comparison_tables
    from cluster.reports.terminal import print_json, print_out

    groups = compare_runs(runs)
    if json:
        print_json([group.as_dict() for group in groups])
    else:
        print_out(*comparison_tables(groups))
