"""Reads a recipe: YAML, then `--set` overrides, then validation; errors name the key and the nearest known one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pipeline.errors import UserError
from pipeline.recipe.document import parse_value, parse_yaml
from pipeline.recipe.schema import Recipe
from pipeline.recipe.suggest import shortened, unknown_name

_WORDS = {
    "missing": "required, and not given",
    "dict_type": "needs a mapping (`key: value`)",
    "model_type": "needs a mapping (`key: value`)",
    "model_attributes_type": "needs a mapping (`key: value`)",
    "tuple_type": "needs a list",
    "list_type": "needs a list",
    "int_type": "needs a whole number",
    "int_parsing": "needs a whole number",
    "int_from_float": "needs a whole number",
    "float_type": "needs a number",
    "float_parsing": "needs a number",
    "finite_number": "needs a finite number",
    "string_type": "needs a text",
    "bool_type": "needs true or false",
    "bool_parsing": "needs true or false",
    "invalid_key": "keys are names, not numbers",
}
_BY_ITSELF = frozenset(("missing", "unknown_task", "unknown_key"))
"""Kinds of refusal whose message does not repeat the given value."""

_MOST_BYTES = 2**20
_MOST_LINES = 20


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: YAML file of plain data, without tags other than YAML's own.
        overrides: `a.b=value` each, the value in YAML.

    Raises:
        UserError: the file is missing, no YAML, or refused; one message lists all refusals, each with the path of its key.
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
    except IsADirectoryError:
        raise UserError(f"recipe {path} is a folder: name the recipe itself, a YAML file, such as photos.yaml") from None
    except OSError as error:
        raise UserError(f"recipe {path}: {error.strerror or error}") from None
    if len(text) > _MOST_BYTES:
        raise UserError(f"recipe {path} is larger than a MiB; a folder or a pattern names many shards")
    try:
        document = parse_yaml(text.decode("utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"recipe {path} is not text in UTF-8") from None
    except ValueError as error:
        raise UserError(f"recipe {path} is {error}") from None
    if not isinstance(document, dict):
        raise UserError(f"recipe {path}: expected a mapping of sections, found {_kind(document)}")
    for override in overrides:
        _apply(document, override)
    return parse_recipe(document, str(path))


def parse_recipe(document: dict[str, Any], origin: str = "recipe") -> Recipe:
    """Validate a document that is already in memory; errors as in `load_recipe`."""
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        found = error.errors()
        lines = [_line(item) for item in found[:_MOST_LINES]]
        lines += [f"and {len(found) - _MOST_LINES:,} more"] if len(found) > _MOST_LINES else []
        raise UserError("\n  ".join([f"{origin} is refused:", *lines])) from None


def _apply(document: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    *parents, last = path.split(".")
    shown = shortened(override)
    if not equals or not all((*parents, last)):
        example = f"{shown}={{}} for a task with its defaults" if parents == ["tasks"] and last else "training.epochs=5"
        raise UserError(f"--set {shown}: expected key=value, such as {example}")
    place = document
    for key in parents:
        inner = {} if place.get(key) is None else place[key]
        if not isinstance(inner, dict):
            raise UserError(f"--set {shown}: '{shortened(key)}' is not a section")
        place[key] = dict(inner)  # a copy: YAML's anchors can make one section of two
        place = place[key]
    try:
        place[last] = parse_value(text)
    except ValueError as error:
        raise UserError(f"--set {shown}: {error}") from None


def _line(item: Any) -> str:
    *parents, last = loc = [str(part) for part in item["loc"]] or [""]
    path = ".".join(shortened(part) for part in loc)
    if item["type"] == "extra_forbidden":
        section = ".".join(shortened(part) for part in parents)
        return f"{section or 'top level'}: {unknown_name('key', last, _keys_at(parents))}"
    message = _WORDS.get(item["type"]) or item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    given = item["input"]
    if item["type"] == "string_type" and isinstance(given, bool | int | float):
        kind = "true or false" if isinstance(given, bool) else "a number"
        message += f', and YAML takes this for {kind}: put it in quotes ({last}: "..."; --set \'{path}="..."\')'
    if item["type"] not in _BY_ITSELF and isinstance(given, str | int | float | list | None):
        message += f" (given: {'nothing' if given is None else shortened(repr(given))})"
    return f"{path}: {message}" if path else message


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "nothing"}.get(type(value), f"'{value}'")


def _keys_at(loc: list[str]) -> list[str]:
    """The known keys of the section at `loc`."""
    model: type[BaseModel] = Recipe
    for key in loc:
        if key in model.model_fields:  # otherwise the user chose the name, as in `corpus.mix`
            model = _model_of(model.model_fields[key].annotation) or model
    return list(model.model_fields)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The section class in a field's type, which may be inside a union or a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_of(part))), None)
