"""Words for a name that is not known: what is near it, and what there is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 200  # characters


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """One line that names the unknown thing, the nearest known one, and all of them."""
    name, names = shortened(name), list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown {kind} '{name}': {hint}known are {', '.join(names)}"


def shortened(text: str) -> str:
    """A text for a message: of a very long one its beginning."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
