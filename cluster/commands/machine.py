"""`doctor`: what this machine can do, and whether its engines render correctly."""

from __future__ import annotations

import typer

from cluster.commands.options import AsJson


def doctor(json: AsJson = False) -> None:
    """Show what this machine can do, and test every installed engine on generated images.

    Each engine renders each task in a process of its own, and is compared with PIL and with the cpu engine; on a machine with a
    GPU this tests rendering on it. The last line says whether this machine is fine, and what to do if not. Exit code 1 if a test
    fails.

    Example: [bold]pseudolabel doctor[/]
    """
    from cluster.doctor.checks import examine
    from cluster.reports.progress import named_parts
    from cluster.reports.terminal import doctor_tables, print_json, print_out

    with named_parts("testing engines") as on_progress:
        findings = examine(on_progress)
    if json:
        print_json(findings.as_dict())
    else:
        print_out(*doctor_tables(findings))
    if findings.failed:
        raise typer.Exit(1)
