"""The output folder of a job: claimed for one identity, and cleared of what was left half written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.errors import UserError
from pipeline.materialize.commit import BAD, COMMITS, FAILED, committed, failed, write_json
from pipeline.materialize.job import Job, difference
from pipeline.shards.described import MANIFEST
from pipeline.storage import TEMPORARY, join

IDENTITY, RECIPE = "identity.json", "recipe.json"

_NOTE = "The command `pseudolabel {}` is under way here, or was interrupted; the same command completes it.\n"
_SHOWN = 12


@dataclass(frozen=True)
class State:
    """What is done of a job: shards by their place in the corpus."""

    done: list[int]
    failed: list[int]
    finished: bool
    """The manifest is there, and the job was not started again after it."""


def read_state(job: Job) -> State:
    """Read what is done of a job, from the names in its folder alone.

    Raises:
        UserError: the folder belongs to another recipe, to another corpus, or is used for something else.
    """
    try:
        there = identity_there(job.out)
        if there is None:
            _check_no_strangers(job)
            return State([], [], False)
        if there != job.identity:
            lines = difference(there, job.identity)
            shown = "\n".join(f"  {line}" for line in lines[:_SHOWN]) + ("\n  ..." if len(lines) > _SHOWN else "")
            raise UserError(
                f"{job.out} holds {there.get('makes', 'pairs')} of another recipe; name another folder, or change back:\n{shown}"
            )
        done, broken = committed(job.out), failed(job.out)
        finished = storage.exists(job.url(MANIFEST)) and not storage.exists(job.url(job.unfinished))
    except OSError as error:
        raise UserError(f"{job.out} cannot be read: {error}") from None
    state = State([], [], finished)
    for i in range(len(job.corpus.urls)):  # names are made one at a time: there may be 100,000
        if (stem := job.stem(i)) in done:
            state.done.append(i)
        elif stem in broken:
            state.failed.append(i)
    if strangers := len(done) - len(state.done):
        stranger = min(done - {job.stem(i) for i in state.done})
        raise UserError(
            f"{job.out} holds {strangers} {job.past} shards that the corpus no longer has, or not with the same content, "
            f"such as {stranger}: put the corpus back as it was, or {job.command} into another folder"
        )
    return state


def check_access(out: str) -> None:
    """Check that the storage allows what a job needs: to read, write and remove; leaves nothing behind.

    Raises:
        UserError: it does not, or there is no such storage.
    """
    try:
        storage.check_writable(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error}") from None
    try:
        identity_there(out)
    except OSError as error:
        raise UserError(f"{out} cannot be read: {error}") from None


def claim(job: Job) -> None:
    """Claim the folder for this job, and remove what killed runs left half written.

    Raises:
        UserError: storage refuses.
    """
    try:
        for folder in ("", COMMITS, FAILED, *job.folders):
            storage.make_folder(join(job.out, folder))
        with storage.write_atomic(job.url(job.unfinished)) as file:
            file.write(_NOTE.format(job.command).encode())
        discard_unfinished_shards(job, finished=False)
        if identity_there(job.out) is None:
            write_json(job.url(RECIPE), job.document())
            write_json(job.url(IDENTITY), job.identity)
    except OSError as error:
        raise UserError(f"{job.out} cannot be written: {error}") from None


def discard_unfinished_shards(job: Job, finished: bool) -> None:
    """Remove what killed writers left half written in any folder of the job, see `pipeline.storage.discard_unfinished`."""
    for folder in ("", COMMITS, FAILED, BAD):
        storage.discard_unfinished(join(job.out, folder) if folder else job.out, finished)


def read_identity(out: str) -> dict[str, Any]:
    """The identity of a rendered corpus; UserError where the folder is none."""
    try:
        there = identity_there(out)
    except OSError as error:
        raise UserError(f"{out} cannot be read: {error}") from None
    if there is None:
        raise UserError(f"{out}: no rendered corpus is there (it has no {IDENTITY})")
    return there


def identity_there(out: str) -> dict[str, Any] | None:
    """The identity for which a folder was claimed; None where it was not.

    Raises:
        UserError: it is damaged.
        OSError: it cannot be read.
    """
    try:
        found = json.loads(storage.read_all(join(out, IDENTITY)))
    except FileNotFoundError:
        return None
    except ValueError:
        raise UserError(f"{join(out, IDENTITY)} is damaged: it is no JSON") from None
    if not isinstance(found, dict):
        raise UserError(f"{join(out, IDENTITY)} is damaged: it is no mapping")
    return found


def _check_no_strangers(job: Job) -> None:
    """Raise UserError where a folder without an identity holds more than a killed claim leaves."""
    ours = {BAD, COMMITS, FAILED, RECIPE, job.unfinished}
    others = [name for name in storage.names(job.out) if name not in ours and not name.endswith(TEMPORARY)]
    if others:
        raise UserError(f"{job.out} is not empty: it holds {others[0]}; name another folder")
