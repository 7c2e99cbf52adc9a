"""Error messages for unknown names: the nearest known name, and all of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 200  # characters


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """A message of one line: the unknown name, the nearest known one, and all known ones."""
    name, names = shortened(name), list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown {kind} '{name}': {hint}known are {', '.join(names)}"


def shortened(text: str) -> str:
    """The text, cut after 200 characters for a message."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
