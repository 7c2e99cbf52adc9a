"""The pretext tasks, one file each, found by being here (or by the entry point group `pseudolabel.tasks`)."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from importlib.metadata import entry_points

from pipeline.tasks.base import Drawn, Task

__all__ = ["Drawn", "Task", "registry"]


@cache
def registry() -> dict[str, type[Task]]:
    """Every task that a recipe can name, by name."""
    found: dict[str, type[Task]] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        for cls in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(cls) and issubclass(cls, Task) and not inspect.isabstract(cls) and hasattr(cls, "name"):
                found[cls.name] = cls
    for point in entry_points(group="pseudolabel.tasks"):
        found[point.name] = point.load()
    return dict(sorted(found.items()))
