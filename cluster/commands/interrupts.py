"""Handles Ctrl-C and SIGTERM in commands that work on Ray."""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.jobs.command_result import CommandResult


@contextmanager
def interruptible(outcome: CommandResult, hint: str = "") -> Iterator[None]:
    """Raise KeyboardInterrupt, with a hint on how to resume, on Ctrl-C and SIGTERM; a second Ctrl-C ends the process at once.

    Args:
        outcome: the command's result, which is written before a second Ctrl-C ends the process; the libraries that are still
            running then would print tracebacks.
        hint: how to resume.
    """
    interrupt = KeyboardInterrupt(*filter(None, [hint]))

    def leave(*_: Any) -> None:
        outcome.end(interrupt)
        os.write(2, f"interrupted{f': {hint}' if hint else ''}\n".encode())
        os._exit(130)

    def first(*_: Any) -> None:
        signal.signal(signal.SIGINT, leave)
        raise KeyboardInterrupt

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored, or handled by the caller
    if ours:
        signal.signal(signal.SIGINT, first)
    then: Any = signal.default_int_handler
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # Ray raises SystemExit on a signal, with exit code 0
        then = leave
        raise interrupt from None
    finally:
        if ours:  # Ray Train may have set its own handler
            signal.signal(signal.SIGINT, then)
        atexit.unregister(_leave_at_once)
        atexit.register(_leave_at_once)  # registered after Ray's own exit handler, so it runs before that


def _leave_at_once() -> None:
    """Let Ctrl-C end the process silently from here on: only Ray's shutdown is left, and its processes end with this one."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
