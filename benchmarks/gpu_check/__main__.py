"""Runs everything that uses a GPU once, in minutes and without network, and reports the result of each step.

    python -m benchmarks.gpu_check [--minutes 8] [--out runs/gpu-check] [--only PART ...]

Without a GPU the steps run with DALI's CPU graph and the CPU engine, and those that need a GPU are skipped. Leaves
`gpu-check.json`, up to date after each step, and what each step's commands printed. Exit code 1 if a step failed.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.gpu_check.checks import Machine, steps
from benchmarks.gpu_check.steps import Found, run
from cluster.reports.machine import this_machine, versions

_MARKS = {"ok": "[green]ok[/]", "failed": "[red]failed[/]", "skipped": "skipped", "pending": "pending"}
_WIDTH = 150


def main() -> int:
    """Run, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="for all steps together")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check"), help="where the results go; emptied before")
    parser.add_argument("--only", nargs="*", help="steps whose name contains one of these, and the photos")
    given = parser.parse_args()
    out = given.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    os.environ.pop("RAY_ADDRESS", None)  # this machine is checked, not a cluster
    here = this_machine()
    import torch

    gpus = torch.cuda.device_count()
    if gpus > 1:  # one GPU is enough, and the others may be in use
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    hidden = f", though the driver shows {', '.join(here.gpus)}" if here.gpus else ""
    absent = "" if gpus else f"no GPU: torch sees none{hidden}"
    about = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "python -m benchmarks.gpu_check " + " ".join(sys.argv[1:]),
        "machine": here.as_dict(),
        "gpus_used": min(gpus, 1),
        "absent": absent,
        "versions": versions(),
        "minutes": given.minutes,
    }
    print(f"{here.cpu}; {', '.join(here.gpus) or 'no GPU'}; driver {here.driver or 'none'}", flush=True)
    chosen = [
        step
        for i, step in enumerate(steps(Machine(out, absent)))
        if i == 0 or not given.only or any(p in step.name for p in given.only)
    ]
    found = run(chosen, out, about, 60 * given.minutes, lambda text: print(text, flush=True))
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    console.print(table(found))
    print(f"{out / 'gpu-check.json'}")
    return 1 if any(one.status == "failed" for one in found) else 0


def table(found: list[Found]) -> Table:
    """A table of every step's result."""
    shown = Table("step", "", "seconds", "found", box=None, pad_edge=False)
    for one in found:
        numbers = {name: value for name, value in one.figures.items() if isinstance(value, int | float)}
        figures = ", ".join(f"{name.replace('_', ' ')} {value:,.4g}" for name, value in numbers.items())
        words = "; ".join(part for part in (figures, one.reason, one.figures.get("note", "")) if part)
        shown.add_row(one.name, _MARKS[one.status], f"{one.seconds:.0f}", escape(words))
    return shown


if __name__ == "__main__":
    sys.exit(main())
