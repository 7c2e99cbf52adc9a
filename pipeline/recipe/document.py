"""Parses the YAML of recipes: plain data of bounded size and depth, numbers as in YAML 1.2 (`1e-3`), no dates."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any, ClassVar

import yaml

_DEEPEST = 50
_MOST_REPEATED = 10_000  # values that aliases may add
_MOST_DIGITS = 30
_NO_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
_TAG = "tag:yaml.org,2002:"
_KINDS = ("null", "bool", "int", "float", "str", "seq", "map")
_QUOTES = "a text that begins with one of * & ! % @ { [ belongs in quotes"


class _Loader(yaml.SafeLoader):
    """A loader of plain data, for which a key that is given twice is an error."""

    yaml_implicit_resolvers: ClassVar = {  # type: ignore[misc]
        first: [(tag, pattern) for tag, pattern in known if tag != f"{_TAG}timestamp"]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors: ClassVar = {
        tag: made for tag, made in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag.removeprefix(_TAG) in _KINDS
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            if key.value in keys:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is given twice", node.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)

    def number(self, node: yaml.ScalarNode) -> float:
        """Construct a number with an exponent; one without a fraction, such as `1e3`, becomes an int."""
        mantissa, _, exponent = node.value.lower().partition("e")
        if "." not in mantissa and 0 <= int(exponent) < _MOST_DIGITS:
            return int(mantissa.replace("_", "")) * 10 ** int(exponent)
        return self.construct_yaml_float(node)


_Loader.add_implicit_resolver("!exponent", re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)[eE][-+]?\d{1,4}\Z"), list("-+.0123456789"))
_Loader.add_constructor("!exponent", _Loader.number)


def parse_yaml(text: str) -> Any:
    """Parse a YAML text into dicts, lists, str, int, float, bool and None.

    Raises:
        ValueError: the text is no YAML or more than plain data (other tags, deep nesting, aliases that hold themselves or repeat
            too much, control characters); the message is one line and names the place.
    """
    try:
        return _constructed(loader := _Loader(text), loader.get_single_node())
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {_in_line(error)}") from None
    except RecursionError:
        raise ValueError(f"nested more than {_DEEPEST} levels deep") from None


def parse_value(text: str) -> Any:
    """Parse a value given on the command line as YAML; where YAML would cut or refuse it, the value is the whole text.

    So patterns (`*.tar`, `{a,b}.tar`) and names with ` #` need no quotes.

    Raises:
        ValueError: as in `parse_yaml`, and where a list, mapping or quote is not closed.
    """
    whole = text.strip()
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        except (yaml.scanner.ScannerError, yaml.parser.ParserError, yaml.composer.ComposerError):
            if _is_collection(whole):
                raise
            return whole
        if node is None:
            return whole or None
        plain = isinstance(node, yaml.ScalarNode) and node.style in (None, "|", ">") and not whole.startswith(("!", "&"))
        if node.end_mark.index < len(text.rstrip()) or (plain and node.value != whole):
            return whole
        return _constructed(loader, node)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {_in_line(error)}") from None
    except RecursionError:
        raise ValueError(f"nested more than {_DEEPEST} levels deep") from None


def _is_collection(text: str) -> bool:
    """Whether an invalid text was meant as a list, a mapping or a quoted text."""
    if text[:1] in ("'", '"'):
        return text.count(text[0]) % 2 == 1
    return text[:1] + text[-1:] in ("[]", "{}") or any(text.count(a) != text.count(b) for a, b in ("[]", "{}"))


def _constructed(loader: _Loader, node: yaml.Node | None) -> Any:
    if node is None:
        return None
    sizes: dict[int, tuple[int, int]] = {}
    values, _ = _measured(node, sizes, 1)
    if values - len(sizes) > _MOST_REPEATED:
        raise yaml.YAMLError(f"its aliases repeat more than {_MOST_REPEATED:,} values")
    try:
        return loader.construct_document(node)
    except (ValueError, LookupError):
        raise yaml.constructor.ConstructorError(None, None, "a value that does not fit its tag", node.start_mark) from None


def _measured(node: yaml.Node, sizes: dict[int, tuple[int, int]], level: int) -> tuple[int, int]:
    """Count the values in a node (an alias counts each time) and how deep they are nested.

    Args:
        node: the node.
        sizes: filled in with both numbers of each node, by its identity; (0, 0) while a node is being measured.
        level: this node's own depth.
    """
    values, depth = sizes.get(id(node), (1, 0))
    if not values:
        raise yaml.composer.ComposerError(None, None, "an alias that holds itself", node.start_mark)
    if id(node) not in sizes:
        sizes[id(node)] = (0, 0)
        for child in _children(node):
            if level > _DEEPEST:
                raise RecursionError
            below, deep = _measured(child, sizes, level + 1)
            values, depth = values + below, max(depth, deep + 1)
        sizes[id(node)] = (values, depth)
    if level + depth > _DEEPEST:
        raise RecursionError
    return values, depth


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.ScalarNode):
        if found := _NO_TEXT.search(node.value):
            raise yaml.constructor.ConstructorError(None, None, f"holds the character {found[0]!a}", node.start_mark)
        if len(node.value) > _MOST_DIGITS and node.tag == f"{_TAG}int":
            raise yaml.constructor.ConstructorError(None, None, f"a number of {len(node.value)} digits", node.start_mark)
        return []
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value)


def _in_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).replace('in "<unicode string>", ', "").split())
    words = f"{error.problem or error.context} (line {mark.line + 1}, column {mark.column + 1})"  # type: ignore[attr-defined]
    if "'\\t'" in words:
        return f"{words}; indent with spaces, not with tabs"
    syntax = isinstance(error, yaml.scanner.ScannerError | yaml.parser.ParserError)
    return f"{words}; {_QUOTES}" if syntax else words
