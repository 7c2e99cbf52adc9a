"""The objectives: one for each way of learning from a kind of label, each in a file here or added by an entry point."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from typing import Any

from pydantic import ValidationError

from pipeline.errors import UserError
from pipeline.recipe.suggest import unknown_name
from pipeline.tasks import Task
from pipeline.tasks.plugins import load_class, points_of
from trainers.networks.backbones import Backbone
from trainers.objectives.base import Objective, Outcome, chosen_objective

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


def objective_class(task: Task, key: str | None = None) -> type[Objective]:
    """The objective that the recipe names for a task, or else the task's default, or else the default of its label kind.

    Args:
        task: the task.
        key: the task's name in the recipe, if that differs from the class's.

    Raises:
        UserError: the objective does not exist, is for another kind of label, or does not take these parameters.
    """
    kind = type(task.label_kind())
    where = f"tasks.{key or task.name}.objective"
    known = {name: cls for name, cls in registry().items() if cls.kind is kind}
    name, parameters = chosen_objective(task)
    name = str(name or kind.__name__.lower())
    if name not in known:
        other = f"; '{name}' is for {registry()[name].kind.__name__} labels" if name in registry() else ""
        words = unknown_name("objective", name, known)
        raise UserError(f"{where}: {words} (for {kind.__name__} labels){other}")
    _check_parameters(known[name], parameters, where)
    return known[name]


def _check_parameters(cls: type[Objective], parameters: dict[str, Any], where: str) -> None:
    for key in parameters:
        if key not in cls.Parameters.model_fields:
            raise UserError(f"{where}.{key}: {unknown_name('parameter', str(key), cls.Parameters.model_fields)} of {cls.name}")
    try:
        cls.Parameters.model_validate(parameters)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, (where, *first["loc"])))
        words = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        raise UserError(f"{path}: {words} (given: {first['input']!r})") from None


def build_objective(task: Task, backbone: Backbone, image_size: int, key: str | None = None) -> Objective:
    """Build the objective of a task; its weights are drawn from torch's generator, see `trainers.networks.backbones.seeded`.

    Args:
        task: gives the kind of label and the input's shape.
        backbone: the network whose features the head reads.
        image_size: side of the crops, pixels.
        key: as for `objective_class`.

    Raises:
        UserError: as `objective_class`.
    """
    return objective_class(task, key)(task, backbone, image_size)
