"""Expands brace patterns, and counts their names first: a few characters can stand for more names than memory holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod

from braceexpand import braceexpand

_INNERMOST = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.-?(\d{1,18}))?")
_LETTERS = re.compile(r"[A-Za-z]\.\.[A-Za-z](?:\.\.-?\d+)?")
_DEEPEST = 20


def expand_braces(pattern: str) -> Iterator[str]:
    """The names that a pattern of braces (`{a,b}`, `{000..099}`, `{a..z}`, one in another) stands for, in order.

    Raises:
        ValueError: its braces do not match.
    """
    return iter(braceexpand(pattern) if "{" in pattern else (pattern,))


def count_names(pattern: str) -> int:
    """An upper bound of the number of names that a pattern stands for, without making them.

    Raises:
        ValueError: braces are nested too deep.
    """
    counts: list[int] = []

    def product(text: str) -> int:
        return prod(counts[int(place)] for place in re.findall("\0(\\d+)\0", text))

    def counted(group: re.Match[str]) -> str:
        if numbers := _NUMBERS.fullmatch(group[1]):
            first, last, step = (int(number or 1) for number in numbers.groups())
            counts.append(abs(last - first) // (step or 1) + 1)
        elif _LETTERS.fullmatch(group[1]):
            counts.append(52)
        else:
            counts.append(sum(product(part) for part in group[1].split(",")))
        return f"\0{len(counts) - 1}\0"

    text = re.sub(r"\\.|\0", "_", pattern)
    for _ in range(_DEEPEST):
        text, found = _INNERMOST.subn(counted, text)
        if not found:
            return product(text)
    raise ValueError(f"braces nested more than {_DEEPEST} deep")
