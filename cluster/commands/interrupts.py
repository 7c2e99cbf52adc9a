"""What a signal to a command that works on Ray becomes."""

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
    """Ctrl-C and SIGTERM end the block as KeyboardInterrupt, with a word on how to go on; a second Ctrl-C waits no more.

    Args:
        outcome: the command's, which is written before a second Ctrl-C ends the process: what is left of it are libraries, which
            would print tracebacks.
        hint: the word.
    """
    interrupt = KeyboardInterrupt(*filter(None, [hint]))

    def leave(*_: Any) -> None:
        outcome.end(interrupt)
        os.write(2, f"interrupted{f': {hint}' if hint else ''}\n".encode())
        os._exit(130)

    def first(*_: Any) -> None:
        signal.signal(signal.SIGINT, leave)
        raise KeyboardInterrupt

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored, or somebody else's
    if ours:
        signal.signal(signal.SIGINT, first)
    then: Any = signal.default_int_handler
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # the latter is how Ray leaves on a signal, with exit code 0
        then = leave
        raise interrupt from None
    finally:
        if ours:  # Ray Train may have put its own there
            signal.signal(signal.SIGINT, then)
        atexit.unregister(_leave_at_once)
        atexit.register(_leave_at_once)  # after Ray has registered its own end, and so before it


def _leave_at_once() -> None:
    """From here on Ctrl-C ends the process without a word: only Ray's own end is left, whose processes end with this one."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
