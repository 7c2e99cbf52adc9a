"""What a signal to a command that works on Ray becomes."""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interruptible(hint: str = "") -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block as KeyboardInterrupt, with a word on how to go on; a second Ctrl-C waits no more."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # the latter is how Ray leaves on a signal, with exit code 0
        raise KeyboardInterrupt(*filter(None, [hint])) from None
    finally:
        atexit.unregister(_leave_at_once)
        atexit.register(_leave_at_once)  # after Ray has registered its own end, and so before it


def _leave_at_once() -> None:
    """From here on Ctrl-C ends the process without a word: only Ray's own end is left, whose processes end with this one."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
