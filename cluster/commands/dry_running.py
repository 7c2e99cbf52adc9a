"""`--dry-run` of the long commands: first what would be done, then what that takes."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainers.planning.dry_run import Facts
    from trainers.planning.estimates import RunEstimate


def say_plan(command: str, plan: Callable[[], Facts], measure: Callable[[], RunEstimate]) -> None:
    """Print what a command would do, which refuses what it would refuse; then measure some seconds of it, and print that.

    Args:
        command: its name.
        plan: says what would be done.
        measure: tries it.
    """
    from cluster.reports.progress import named_parts
    from cluster.reports.terminal import estimate_table, plan_table, print_out

    print_out(plan_table(command, plan()))
    # Ray prints to stdout that its actors were stopped at work.
    with named_parts("measuring"), redirect_stdout(io.StringIO()):
        found = measure()
    if found.measured:
        print_out(estimate_table(found.facts()))
