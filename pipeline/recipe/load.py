"""Reads a recipe: YAML, then `--set` overrides, then validation, with errors that name the key and the nearest known one."""

from __future__ import annotations

import types
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import UserError
from pipeline.recipe.schema import Recipe
from pipeline.recipe.suggest import unknown_name

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
_BY_ITSELF = frozenset(("missing", "unknown_task"))
"""Refusals that say all without the value that was given."""


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: YAML file; plain data, no tags beyond YAML's own.
        overrides: `a.b=value` each, the value in YAML.

    Raises:
        UserError: file missing, not YAML, or refused; every refusal in one message, each with its key's path.
    """
    try:
        document = _parse(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"recipe {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"recipe {path} is not text in UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(f"recipe {path} is not valid YAML: {_in_line(error)}") from None
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
        lines = [f"  {_line(item)}" for item in error.errors()]
        raise UserError("\n".join([f"{origin} is refused:", *lines])) from None


class _Loader(yaml.SafeLoader):
    """YAML's plain data; a key that is given twice is an error, not a silent loss of the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _parse(text: str) -> Any:
    return yaml.load(text, _Loader)


def _apply(document: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    *parents, last = path.split(".")
    if not equals or not all((*parents, last)):
        raise UserError(f"--set {override}: expected key=value, such as training.epochs=5")
    place = document
    for key in parents:
        inner = {} if place.get(key) is None else place[key]
        if not isinstance(inner, dict):
            raise UserError(f"--set {override}: '{key}' is not a section")
        place[key] = dict(inner)  # a copy: YAML's anchors can make one section of two
        place = place[key]
    try:
        place[last] = _parse(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: not valid YAML: {_in_line(error)}") from None


def _line(item: Any) -> str:
    *parents, last = loc = [str(part) for part in item["loc"]] or [""]
    if item["type"] == "extra_forbidden":
        return f"{'.'.join(parents) or 'top level'}: {unknown_name('key', last, _keys_at(parents))}"
    message = _WORDS.get(item["type"]) or item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    path, given = ".".join(loc), item["input"]
    if item["type"] not in _BY_ITSELF and isinstance(given, str | int | float | list | None):
        message += f" (given: {'nothing' if given is None else repr(given)})"
    return f"{path}: {message}" if path else message


def _in_line(error: yaml.YAMLError) -> str:
    return " ".join(str(error).replace('in "<unicode string>", ', "").split())


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "nothing"}.get(type(value), f"'{value}'")


def _keys_at(loc: list[str]) -> list[str]:
    """The keys that the section at `loc` knows."""
    if loc[:1] == ["tasks"]:
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
