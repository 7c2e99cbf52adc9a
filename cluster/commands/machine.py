"""`doctor`: what this machine can do, and whether its engines render rightly."""

from __future__ import annotations

import typer

from cluster.commands.options import AsJson


def doctor(json: AsJson = False) -> None:
    """Say what this machine can do, and test every engine that is here on generated images.

    Each engine renders each task in a process of its own and is held against PIL and against the cpu engine; on a machine with a
    GPU this shows whether the GPU path is right. Exit code 1 if a test fails.

    Example: [bold]pseudolabel doctor[/]
    """
    from cluster.doctor.checks import examine
    from cluster.reports.progress import busy
    from cluster.reports.terminal import doctor_tables, say, say_json

    with busy("testing engines") as now:
        findings = examine(now)
    if json:
        say_json(findings.as_dict())
    else:
        say(*doctor_tables(findings))
    if findings.failed:
        raise typer.Exit(1)
