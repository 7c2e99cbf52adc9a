"""`result.json`: the result of a command, at a URL that its caller knows, for orchestrators that import nothing of ours."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from cluster.console import printable
from pipeline.errors import RunError, UnderWay, UserError

VERSION = 1
RESULT = "result.json"
"""The end of a result's name: `<command>.result.json` in a run's folder, `<folder>.<command>.result.json` next to another."""

PENDING, RUNNING, DONE, FAILED, REFUSED, INTERRUPTED = "pending", "running", "done", "failed", "refused", "interrupted"
EXIT_CODES = {DONE: 0, FAILED: 1, REFUSED: 2, INTERRUPTED: 130}
UNREAD = 141
"""The exit code of a command that succeeded after the reader of stdout had gone: a shell's code for SIGPIPE."""

JOB = "PSEUDOLABEL_JOB"
"""The environment variable that tells a job of a cluster its id."""


class CommandResult:
    """The result of a command, filled in while it works.

    Args:
        command: its name.
        given: the URL that the caller chose; else `begin` sets it.
    """

    def __init__(self, command: str, given: str | None = None) -> None:
        self._command, self._given = command, given
        self._url: str | None = None
        self._job = os.environ.get(JOB)
        self._started, self._since = _now(), time.monotonic()
        self.counts: dict[str, int] = {}
        self.artefacts: dict[str, str] = {}
        self.metrics: dict[str, float] = {}

    def submitted(self, url: str, job: str) -> None:
        """Write a `pending` result for a job that is being submitted, in place of any result of an earlier attempt.

        Args:
            url: as of `begin`.
            job: its id.
        """
        self._url, self._job = self._given or url, job
        self._write(PENDING, None)

    def begin(self, url: str) -> None:
        """Write a `running` result as the work begins, so that none of an earlier run is mistaken for it.

        Args:
            url: where the result goes if the caller has not chosen a URL.
        """
        self._url = self._given or url
        self._write(RUNNING, None)

    def end(self, error: BaseException | None) -> None:
        """Write the final result, unless its URL is unknown, or the same run is under way elsewhere and writes its own."""
        self._url = self._url or self._given
        if self._url is not None and not isinstance(error, UnderWay):
            self._write(status_of(error), _words(error))

    def _write(self, status: str, error: str | None) -> None:
        from importlib.metadata import version

        from pipeline.storage import absolute, make_folder, scrubbed, scrubbed_document, write_atomic

        assert self._url is not None
        result = {
            "version": VERSION,
            "command": self._command,
            "job": self._job,
            "status": status,
            "exit_code": EXIT_CODES.get(status),
            "error": error and scrubbed(error),
            "started": self._started,
            "ended": None if status in (PENDING, RUNNING) else _now(),
            "seconds": round(time.monotonic() - self._since, 3),
            "counts": {name: int(count) for name, count in self.counts.items()},  # sums over ranks are made of floats
            "artefacts": scrubbed_document(self.artefacts),
            "metrics": self.metrics,
            "pseudolabel": version("pseudolabel"),
        }
        try:
            url = absolute(self._url)
            make_folder(url.rpartition("/")[0])
            with write_atomic(url) as file:
                file.write(f"{json.dumps(result, indent=1)}\n".encode())
        except (OSError, UserError) as problem:  # how the run itself ended matters more
            print(printable(f"warning: the result cannot be written: {problem}"), file=sys.stderr)


@contextmanager
def recorded(command: str, given: str | None = None) -> Iterator[CommandResult]:
    """Yield a command's result, which is written however the block ends; arguments as of `CommandResult`."""
    outcome = CommandResult(command, given)
    try:
        yield outcome
    except BaseException as error:
        outcome.end(error)
        raise
    outcome.end(None)


def result_url(folder: str, command: str) -> str:
    """The URL of the result of a command on a folder: next to the folder, whose content is the same after every run."""
    from pipeline.storage import absolute, is_local

    place = absolute(folder)
    return f"{(place if is_local(place) else place.partition('?')[0]).rstrip('/')}.{command}.{RESULT}"


def status_of(error: BaseException | None) -> str:
    """The status of a command that ended with this error."""
    code = getattr(error, "exit_code", None)  # typer.Exit
    if error is None or code == 0:
        return DONE
    if isinstance(error, UserError) or code == EXIT_CODES[REFUSED]:
        return REFUSED
    return INTERRUPTED if isinstance(error, KeyboardInterrupt | SystemExit) else FAILED


def scores(rows: list[Mapping[str, Any]]) -> dict[str, float]:
    """What was measured, by `protocol/start`, of a report's rows on downstream tasks."""
    from trainers.running.measures import measured_value

    return {f"{row['protocol']}/{row['init']}": measured_value(row) for row in rows}


def _words(error: BaseException | None) -> str | None:
    if error is None:
        return None
    text = str(error)
    return text if isinstance(error, UserError | RunError) else f"{type(error).__name__}: {text}".rstrip(": ")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
