"""Objectives, one file each, or by an entry point: how a trainer learns from each kind of label."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from pipeline.errors import UserError
from pipeline.recipe.suggest import unknown_name
from pipeline.tasks import Task
from pipeline.tasks.plugins import load_class, points_of
from trainers.networks.backbones import Backbone
from trainers.objectives.base import Objective, Outcome

__all__ = ["Objective", "Outcome", "build_objective", "objective_class", "registry"]


@cache
def registry() -> dict[str, type[Objective]]:
    """Every objective by name.

    Raises:
        UserError: another package's entry point clashes or cannot be used, see `pipeline.tasks.plugins`.
    """
    found: dict[str, type[Objective]] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        for cls in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(cls) and issubclass(cls, Objective) and not inspect.isabstract(cls):
                found[cls.name] = cls
    for name, point in points_of("pseudolabel.objectives", found).items():
        found[name] = load_class(point, Objective)
    return dict(sorted(found.items()))


def objective_class(task: Task) -> type[Objective]:
    """The objective that a task names, or else the default of its label kind.

    Raises:
        UserError: no such objective, or one for another kind of label.
    """
    kind = type(task.label_kind())
    known = {name: cls for name, cls in registry().items() if cls.kind is kind}
    name = task.objective or kind.__name__.lower()
    if name not in known:
        other = f"; '{name}' is for {registry()[name].kind.__name__} labels" if name in registry() else ""
        words = unknown_name("objective", name, known)
        raise UserError(f"tasks.{task.name}.objective: {words} (for {kind.__name__} labels){other}")
    return known[name]


def build_objective(task: Task, backbone: Backbone, image_size: int) -> Objective:
    """The head, loss and metric of a task, randomly initialised from torch's generator, see `trainers.networks.backbones.seeded`.

    Args:
        task: decides the kind of label and the input's shape.
        backbone: whose features the head reads.
        image_size: side of the crops, pixels.

    Raises:
        UserError: as `objective_class`.
    """
    return objective_class(task)(task, backbone, image_size)
