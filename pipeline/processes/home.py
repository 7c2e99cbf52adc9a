"""Makes other processes import our packages, and not other modules of the same names."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

HOME = Path(__file__).parents[2]
"""The folder that holds our packages; `python -m` finds them first in a process that starts in it."""

PACKAGES = ("pipeline", "trainers", "cluster", "pseudolabel")

_HOOK = "worker_process_setup_hook"
"""Ray's name for a function that each worker runs before anything else."""


def namesake() -> str | None:
    """The path of a module that has the name of one of our packages, and that Ray's workers would import instead; else None.

    They search the folder of the command or script, the working directory and `PYTHONPATH` before the installed packages. A
    folder without an `__init__.py` does no harm.
    """
    folders = [os.path.dirname(os.path.realpath(sys.argv[0])), os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    for name in PACKAGES:
        spec = PathFinder.find_spec(name, [folder for folder in folders if folder])
        if spec is not None and spec.origin and not (HOME / name / "__init__.py").samefile(spec.origin):
            return spec.origin
    return None


def worker_options() -> dict[str, Any]:
    """Options of `ray.init` that make its workers import our packages; empty where no other module has their names."""
    return {"runtime_env": {_HOOK: importer()}} if namesake() else {}


def check_workers(runtime_env: Mapping[str, Any]) -> None:
    """Raise UserError where the caller started Ray, and its workers would import other modules under our names.

    Args:
        runtime_env: that of the running job.

    Raises:
        UserError: names the module that they would import, and says what to do.
    """
    if (other := namesake()) and not runtime_env.get(_HOOK):
        raise UserError(
            f"Ray's workers would import {other} in place of pseudolabel's package of that name: give it another name, or "
            "leave out ray.init(): pseudolabel connects by itself, and then workers import the right one"
        )


def importer() -> Callable[[], None]:
    """A function that imports our packages, for each of Ray's workers to run first.

    It is a nested function: Ray sends such a function as code, so a worker need not find a module to run it.
    """
    home, packages = str(HOME), PACKAGES

    def import_ours() -> None:
        import importlib
        import sys

        sys.path.insert(0, home)
        try:
            for name in packages:
                importlib.import_module(name)
        finally:
            sys.path.remove(home)

    return import_ours
