"""Entry points: the tasks, objectives and backbones that other installed packages add by name."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pipeline.errors import UserError


def points_of(group: str, own: Collection[str]) -> dict[str, EntryPoint]:
    """The entry points of a group, by name; they are not imported.

    Args:
        group: such as `pseudolabel.tasks`.
        own: names that pseudolabel itself uses.

    Raises:
        UserError: two packages add the same name, or one adds a name that is taken.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        other = "pseudolabel has one of that name" if point.name in own else None
        if point.name in found:
            other = f"so does {_package(found[point.name])}"
        if other:
            raise UserError(f"{_words(point)}, and {other}: rename it there, or uninstall the package")
        found[point.name] = point
    return found


def load_class(point: EntryPoint, base: type) -> Any:
    """Import the class that an entry point names.

    Raises:
        UserError: it cannot be imported, is no subclass of `base`, or its `name` is not the entry point's name.
    """
    cls = load(point)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise UserError(f"{_words(point)}, which is no subclass of {base.__module__}.{base.__name__}")
    if getattr(cls, "name", None) != point.name:
        raise UserError(f"{_words(point)}, a class whose `name` is {getattr(cls, 'name', None)!r}: give both the same name")
    return cls


def load(point: EntryPoint) -> Any:
    """Import the object that an entry point names.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        return point.load()
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"{_words(point)}, which cannot be imported: {why}; repair or uninstall the package") from error


def _package(point: EntryPoint) -> str:
    return f"the package {point.dist.name if point.dist else 'of no name'}"


def _words(point: EntryPoint) -> str:
    return f"{_package(point)} adds '{point.name}' to {point.group} as {point.value}"
