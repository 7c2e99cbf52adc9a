"""The pretext tasks, one in each file here; other packages add tasks by the entry point group `pseudolabel.tasks`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from pipeline.tasks.base import Drawn, Task
from pipeline.tasks.plugins import load_class, points_of

__all__ = ["Drawn", "Task", "registry"]


@cache
def registry() -> dict[str, type[Task]]:
    """Every task that a recipe can name, by name.

    Raises:
        UserError: another package's entry point clashes or cannot be used, see `pipeline.tasks.plugins`.
    """
    found: dict[str, type[Task]] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        for cls in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(cls) and issubclass(cls, Task) and not inspect.isabstract(cls) and hasattr(cls, "name"):
                found[cls.name] = cls
    for name, point in points_of("pseudolabel.tasks", found).items():
        found[name] = load_class(point, Task)
    return dict(sorted(found.items()))
