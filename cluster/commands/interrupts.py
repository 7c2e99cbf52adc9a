"""What a signal to a command that works on Ray becomes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interruptible(hint: str = "") -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block as KeyboardInterrupt, with a word on how to go on."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # the latter is how Ray leaves on a signal, with exit code 0
        raise KeyboardInterrupt(*filter(None, [hint])) from None
