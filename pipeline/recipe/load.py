"""Reads a recipe: YAML, then `--set` overrides, then validation, with errors that name the key and the nearest known one."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import UserError
from pipeline.recipe.schema import Recipe
from pipeline.recipe.suggest import unknown_name


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: YAML file; plain data, no tags beyond YAML's own.
        overrides: `a.b=value` each, the value in YAML.

    Raises:
        UserError: file missing, not YAML, or refused; every refusal in one message, each with its key's path.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise UserError(f"recipe {path}: {error.strerror or error}") from None
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"recipe {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise UserError(f"recipe {path}: expected a mapping of sections, found {type(document).__name__}")
    for override in overrides:
        _apply(document, override)
    return parse_recipe(document, str(path))


def parse_recipe(document: dict[str, Any], origin: str = "recipe") -> Recipe:
    """Validate a document that is already in memory; errors as in `load_recipe`."""
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        lines = [f"  {_line(item, document)}" for item in error.errors()]
        raise UserError("\n".join([f"{origin} is refused:", *lines])) from None


def _apply(document: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"--set {override}: expected key=value, such as training.epochs=5")
    *parents, last = path.split(".")
    place = document
    for key in parents:
        if place.get(key) is None:
            place[key] = {}
        place = place[key]
        if not isinstance(place, dict):
            raise UserError(f"--set {override}: '{key}' is not a section")
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: '{text}' is not valid YAML") from None


def _line(item: Any, document: dict[str, Any]) -> str:
    loc = [str(part) for part in item["loc"] if not _is_union_tag(part)]
    path = ".".join(loc) or "recipe"
    if item["type"] == "extra_forbidden":
        return f"{'.'.join(loc[:-1]) or 'top level'}: {unknown_name('key', loc[-1], _keys_at(loc[:-1], document))}"
    if item["type"] == "missing":
        return f"{path}: required, and not given"
    message = item["msg"].removeprefix("Value error, ")
    shown = item["input"]
    return f"{path}: {message}" + (f" (given: {shown!r})" if isinstance(shown, str | int | float | list) else "")


def _is_union_tag(part: Any) -> bool:
    return isinstance(part, str) and (part.startswith(("constrained-", "list[")) or part in {"str", "int", "float"})


def _keys_at(loc: list[str], document: dict[str, Any]) -> list[str]:
    """The keys that the section at `loc` knows."""
    if len(loc) >= 2 and loc[0] == "tasks":
        from pipeline.tasks import registry

        return list(registry()[loc[1]].model_fields)
    model: type[BaseModel] = Recipe
    for key in loc:
        model = _model_of(model.model_fields[key].annotation) or model
    return list(model.model_fields)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if get_origin(annotation) in (Union, types.UnionType):
        return next((found for part in get_args(annotation) if (found := _model_of(part))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
