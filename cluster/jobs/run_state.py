"""What a run is doing now, read from its folder: its newest command, that one's status, and the lines of its log."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cluster.jobs.command_result import PENDING, RESULT, RUNNING
from pipeline.errors import UserError
from pipeline.storage import absolute, exists, is_local, join, read_all

_LOGS = {"pretrain": ("pretrain",), "finetune": ("finetune-pretrained", "finetune-random"), "evaluate": (), "rounds": ("rounds",)}
"""The logs of each command, in the order in which they are written."""

_POLL_SECONDS, _FAR_POLL_SECONDS = 1.0, 20.0


@dataclass(frozen=True)
class RunState:
    """What a run is doing.

    Args:
        command: the newest one, such as `pretrain`.
        status: of that command, as in its `result.json`; `running` also where it was killed before it could write another.
        error: why it failed, if it did.
        lines: its log lines so far, the oldest first; each has its `time`, in Unix seconds.
    """

    command: str
    status: str
    error: str | None
    lines: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """What programs want to know: the command, its status, and of the newest line step, steps, losses and seconds left."""
        known: dict[str, Any] = {"command": self.command, "status": self.status, "error": self.error}
        if not self.lines:
            return known
        newest = self.lines[-1]
        losses = {name: task["loss"] for name, task in newest["tasks"].items()}
        known |= {key: newest[key] for key in ("stage", "step", "steps", "time", "round", "rounds") if key in newest}
        return {**known, "losses": losses, "left": self.left}

    @property
    def left(self) -> float | None:
        """Seconds until the last step of the newest line's stage, at the pace of its lines; None while that is unknown."""
        of_stage = [line for line in self.lines if line["stage"] == self.lines[-1]["stage"]]
        if len(of_stage) < 2 or self.status != RUNNING:
            return None
        first, last = of_stage[0], of_stage[-1]
        pace = (last["time"] - first["time"]) / (last["step"] - first["step"])
        return max(0.0, pace * (last["steps"] - last["step"]))


def is_run(name: str) -> bool:
    """Whether a name means the folder of a run, and no job of a cluster: it has a slash, or is a folder here."""
    return "/" in name or Path(name).is_dir()


def run_state(run: str) -> RunState:
    """Read what a run is doing.

    Args:
        run: its folder, a path or URL.

    Raises:
        UserError: no command has begun there.
    """
    url = absolute(run)
    found = [json.loads(read_all(place)) for command in _LOGS if exists(place := join(url, f"{command}.{RESULT}"))]
    if not found:
        raise UserError(f"{run}: no command has begun there: give the folder of a run, such as runs/photos, or the id of a job")
    newest = max(found, key=lambda result: str(result["started"]))
    began = datetime.fromisoformat(newest["started"]).timestamp()
    lines = [line for log in _LOGS[newest["command"]] for line in _since(join(url, f"{log}.jsonl"), began)]
    return RunState(newest["command"], newest["status"], newest["error"], lines)


def states(run: str) -> Iterator[RunState]:
    """Yield what a run is doing, again and again, until its command has ended; arguments and errors as of `run_state`."""
    while (state := run_state(run)).status in (PENDING, RUNNING):
        yield state
        time.sleep(_POLL_SECONDS if is_local(absolute(run)) else _FAR_POLL_SECONDS)
    yield state


def _since(url: str, began: float) -> Iterator[dict[str, Any]]:
    """The lines of a log that were written since then; the last one may be half written."""
    for line in read_all(url).splitlines() if exists(url) else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.get("time", 0.0) >= began:
            yield record
