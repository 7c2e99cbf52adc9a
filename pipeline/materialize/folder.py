"""The output folder: claimed for one identity, refused to another, and tidied when all is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.errors import UserError
from pipeline.materialize.commit import BAD, COMMITS, FAILED, committed, failed, write_json
from pipeline.materialize.job import RenderJob, difference
from pipeline.storage import TEMPORARY, join

IDENTITY, RECIPE, MANIFEST = "identity.json", "recipe.json", "manifest.json"
UNFINISHED = "render.unfinished"
"""Lies in the folder from the beginning of a render until its manifest is written."""

_WORDS = b"A render is under way here, or was interrupted; the same `pseudolabel render` completes it.\n"
_SHOWN = 12


@dataclass(frozen=True)
class State:
    """What lies in the folder of a job, by the shards' places in the corpus."""

    done: list[int]
    failed: list[int]
    finished: bool
    """The manifest is there, and nothing was begun after it."""


def look(job: RenderJob) -> State:
    """See what of a job is done, from the names in the folder alone.

    Raises:
        UserError: the folder belongs to another recipe, to another corpus, or is used for something else.
    """
    try:
        there = identity_there(job.out)
        if there is None:
            _refuse_strangers(job.out)
            return State([], [], False)
        if there != job.identity:
            lines = difference(there, job.identity)
            shown = "\n".join(f"  {line}" for line in lines[:_SHOWN]) + ("\n  ..." if len(lines) > _SHOWN else "")
            raise UserError(f"{job.out} holds pairs of another recipe; name another folder, or change back:\n{shown}")
        done, broken = committed(job.out), failed(job.out)
        finished = storage.exists(job.url(MANIFEST)) and not storage.exists(job.url(UNFINISHED))
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
            f"{job.out} holds {strangers} rendered shards that the corpus no longer has, or not with the same content, "
            f"such as {stranger}: put the corpus back as it was, or render into another folder"
        )
    return state


def check_access(out: str) -> None:
    """See at once whether storage lets us read, write and remove what a render needs to; leaves nothing behind.

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


def claim(job: RenderJob, recipe: dict[str, Any]) -> None:
    """Make the folder this job's own, and tidy it of what killed runs left half written.

    Raises:
        UserError: storage refuses.
    """
    try:
        for folder in ("", COMMITS, FAILED, *([BAD] if job.recipe.render.keep_bad else [])):
            storage.make_folder(join(job.out, folder))
        with storage.write_atomic(job.url(UNFINISHED)) as file:
            file.write(_WORDS)
        discard_unfinished_shards(job, finished=False)
        if identity_there(job.out) is None:
            write_json(job.url(RECIPE), recipe)
            write_json(job.url(IDENTITY), job.identity)
    except OSError as error:
        raise UserError(f"{job.out} cannot be written: {error}") from None


def discard_unfinished_shards(job: RenderJob, finished: bool) -> None:
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


def _refuse_strangers(out: str) -> None:
    """Without an identity only what a claim leaves that was killed may be there."""
    ours = {BAD, COMMITS, FAILED, RECIPE, UNFINISHED}
    others = [name for name in storage.names(out) if name not in ours and not name.endswith(TEMPORARY)]
    if others:
        raise UserError(f"{out} is not empty: it holds {others[0]}; name another folder")
