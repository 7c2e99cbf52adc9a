"""Handles Ctrl-C and SIGTERM in commands that work on Ray."""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interruptible(hint: str = "") -> Iterator[None]:
    """Raise KeyboardInterrupt, with a hint on how to resume, on Ctrl-C and SIGTERM; a second Ctrl-C ends the process at once."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # Ray raises SystemExit on a signal, with exit code 0
        raise KeyboardInterrupt(*filter(None, [hint])) from None
    finally:
        atexit.unregister(_leave_at_once)
        atexit.register(_leave_at_once)  # registered after Ray's own exit handler, so it runs before that


def _leave_at_once() -> None:
    """Let Ctrl-C end the process silently from here on: only Ray's shutdown is left, and its processes end with this one."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
