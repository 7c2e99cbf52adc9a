"""Where our packages lie, and how other processes find them there before anything else of the same names."""

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
    """The path of something else that has one of our names, and that Ray's workers would find before our package.

    They look into the folder of the command or script, its working directory and `PYTHONPATH` before they look where packages are
    installed. A folder without code of its own is not in the way.
    """
    folders = [os.path.dirname(os.path.realpath(sys.argv[0])), os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    for name in PACKAGES:
        spec = PathFinder.find_spec(name, [folder for folder in folders if folder])
        if spec is not None and spec.origin and not (HOME / name / "__init__.py").samefile(spec.origin):
            return spec.origin
    return None


def worker_options() -> dict[str, Any]:
    """What `ray.init` is told so that its workers import our packages: nothing, where nothing is in the way."""
    return {"runtime_env": {_HOOK: importer()}} if namesake() else {}


def check_workers(runtime_env: Mapping[str, Any]) -> None:
    """Refuse a Ray that the caller has started, and whose workers would import something else under our names.

    Args:
        runtime_env: that of the running job.

    Raises:
        UserError: with what they would import, and what to do.
    """
    if (other := namesake()) and not runtime_env.get(_HOOK):
        raise UserError(
            f"Ray's workers would import {other} in place of pseudolabel's package of that name: give it another name, or "
            "leave out ray.init(): pseudolabel connects by itself, and then workers import the right one"
        )


def importer() -> Callable[[], None]:
    """What a worker of Ray's does first, so that our names mean our packages in it from then on.

    Ray sends a function inside a function as code: nothing has to be found there before it runs.
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
