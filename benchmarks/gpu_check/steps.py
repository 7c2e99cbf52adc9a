"""Runs steps one after another, each with a time limit; a step's result is on disk before the next one begins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.storage import write_atomic

_GRACE = 5.0  # seconds that a command has to tidy up once it is asked to end
_POLL = 0.1
_ROOT = Path(__file__).resolve().parents[2]  # `python -m` finds modules from there

Status = Literal["pending", "ok", "failed", "skipped"]


class Failed(Exception):
    """A step has failed.

    Args:
        reason: in words.
        figures: what was measured all the same.
    """

    def __init__(self, reason: str, figures: Mapping[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.figures = dict(figures or {})


class Skipped(Exception):
    """A step cannot run here; the message is the reason."""


@dataclass(frozen=True)
class Step:
    """A step of the check.

    Args:
        name: its name, which names its log too.
        limit: seconds that it may take.
        run: runs it and returns its figures; `note` among them says what was done in another way than on a GPU.
    """

    name: str
    limit: float
    run: Callable[[Turn], Mapping[str, Any]]


@dataclass
class Turn:
    """What a running step may use, and until when.

    Args:
        log: a file for what its commands print.
        end: when its time is up, by `time.monotonic`.
        limit: seconds from its start to `end`.
    """

    log: Path
    end: float
    limit: float

    def command(self, words: Sequence[str], environment: Mapping[str, str] | None = None, codes: Sequence[int] = (0,)) -> str:
        """Run a command to its end; returns what it printed to stdout.

        Args:
            words: the command.
            environment: variables that it has besides.
            codes: exit codes that are no failure.

        Raises:
            Failed: it has another exit code, with its last words; or the time is up, and it was ended.
        """
        with self.started(words, environment) as process:
            out, _ = process.communicate(timeout=self.left())
        text: str = out.decode(errors="replace")
        with self.log.open("a") as log:
            log.write(text)
        if process.returncode not in codes:
            lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            raise Failed(f"exit code {process.returncode}: {' '.join(lines[-1:]) or 'no word'} ({self.log})")
        return text

    @contextmanager
    def started(self, words: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
        """Start a command in a process group of its own, which is ended with the block; arguments and errors as of `command`."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                list(words),
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        try:
            yield process
        except subprocess.TimeoutExpired:
            raise Failed(f"not done after {self.limit:.0f} seconds, and ended ({self.log})") from None
        finally:
            _end(process)

    def left(self) -> float:
        """Seconds until its time is up."""
        return max(0.0, self.end - time.monotonic())

    def wait(self, until: Callable[[], bool], process: subprocess.Popen[bytes]) -> bool:
        """Wait until a condition holds; false if the process ends before.

        Raises:
            Failed: the time is up.
        """
        while not until():
            if process.poll() is not None:
                return False
            if not self.left():
                raise Failed(f"not done after {self.limit:.0f} seconds, and ended ({self.log})")
            time.sleep(_POLL)
        return True


@dataclass
class Found:
    """The result of a step.

    Args:
        name: the step's.
        status: `pending` until it has had its turn.
        seconds: that it took.
        reason: why it failed or was skipped.
        figures: what it measured.
    """

    name: str
    status: Status = "pending"
    seconds: float = 0.0
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def run(
    steps: Sequence[Step], folder: Path, about: Mapping[str, Any], seconds: float, report: Callable[[str], None]
) -> list[Found]:
    """Run the steps in turn; one that fails or takes too long does not stop the others.

    Args:
        steps: the steps.
        folder: where `gpu-check.json` and the logs go.
        about: further entries of the JSON.
        seconds: for all steps together; those that are not reached are skipped.
        report: called with a line when a step begins, and with its result.

    Returns:
        The results; `gpu-check.json` holds them too, from the start, and is written again after each step.
    """
    found = [Found(step.name) for step in steps]
    began = time.monotonic()
    _write(folder, about, found)
    for step, result in zip(steps, found):
        start = time.monotonic()
        left = began + seconds - start
        if left <= 0:
            result.status, result.reason = "skipped", f"the {seconds / 60:g} minutes were used up before it"
        else:
            report(f"{step.name} ...")
            limit = min(step.limit, left)
            turn = Turn(folder / f"{step.name.replace(' ', '-').replace(',', '')}.log", start + limit, limit)
            try:
                result.figures = dict(step.run(turn))
                result.status = "ok"
            except Skipped as reason:
                result.status, result.reason = "skipped", str(reason)
            except Failed as reason:
                result.status, result.reason, result.figures = "failed", str(reason), reason.figures
            except Exception as error:  # noqa: BLE001  it becomes the step's reason, and the other steps still run
                result.status, result.reason = "failed", f"{type(error).__name__}: {error}"
            result.seconds = round(time.monotonic() - start, 1)
        report(f"{step.name}: {result.status} after {result.seconds:.0f} s{f', {result.reason}' if result.reason else ''}")
        _write(folder, about, found)
    return found


def _write(folder: Path, about: Mapping[str, Any], found: list[Found]) -> None:
    content = {**about, "failed": any(one.status == "failed" for one in found), "steps": [asdict(one) for one in found]}
    with write_atomic(str(folder / "gpu-check.json")) as file:
        file.write(json.dumps(content, indent=1).encode())


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and what it started, gently first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    if process.stdout:
        process.stdout.close()
