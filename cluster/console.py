"""Where commands print: literal text, on streams that survive a closed pipe, a full disk and a narrow encoding."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """A text without secrets, and with control characters written out: names of files and classes must not steer a terminal."""
    from pipeline.storage import scrubbed

    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", scrubbed(text))


class PlainConsole(Console):
    """A console for texts that come from users: no markup (`[old]`), no emoji codes (`:cat:`), no control characters."""

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(printable(text), **{**how, "markup": False, "emoji": False})


class OutputStream(io.TextIOWrapper):
    """A standard stream that keeps its first failure for the command's end: no work is undone, and later output is dropped.

    Characters that its encoding lacks are written as a backslash and a number.

    Attributes:
        lost: the first failure, or None.
    """

    lost: OSError | None = None

    def write(self, text: str) -> int:
        with self._kept():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._kept():
            super().flush()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.lost = self.lost or error
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, self.fileno())  # what is still buffered must go somewhere
            os.close(sink)

    @property
    def is_unread(self) -> bool:
        """Whether its reader has closed the pipe, as `head` does."""
        return self.lost is not None and self.lost.errno == errno.EPIPE


class PlainFormatter(logging.Formatter):
    """Formats warnings without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def keep_streams() -> None:
    """Replace stdout and stderr by `OutputStream`s, and make warnings printable; a stream that the caller has closed shows
    nothing."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(PlainFormatter())
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process
        how = {"encoding": stream.encoding, "line_buffering": stream.line_buffering, "write_through": stream.write_through}
        kept = OutputStream(stream.detach(), errors="backslashreplace", **how)
        setattr(sys, name, kept)
        setattr(sys, f"__{name}__", kept)
