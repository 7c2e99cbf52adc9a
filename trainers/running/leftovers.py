"""What can be removed from a run's folder: checkpoints of finished stages, and files that killed processes left half written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.recipe.schema import Recipe
from pipeline.storage import TEMPORARY, discard_unfinished, exists, is_local, scrubbed_document, walk
from trainers.running.checkpoints import Checkpoints
from trainers.running.runs import BACKBONE, FINETUNED, PRETRAINED, RECIPE, RunFolder, decisive, differences

_HALF_WRITTEN = f"*{TEMPORARY}"


@dataclass(frozen=True)
class Leftover:
    """Something in a run's folder other than weights, results and logs.

    Args:
        name: of a subfolder, or a pattern of files.
        size: bytes.
        what: what it is, in words.
        needed: whether a run could resume from it.
    """

    name: str
    size: int
    what: str
    needed: bool


def leftovers(recipe: Recipe) -> list[Leftover]:
    """List the leftovers in the run's folder, of this recipe and of others under its name; none if there is no folder."""
    folder = RunFolder(recipe)
    if not exists(folder.url):
        return []
    found = [_stage(folder, name, recipe) for name in folder.stages()]
    if is_local(folder.url):
        half = [(path, size) for path, size in walk(folder.url) if path.rpartition("/")[2].startswith(".")]
        sizes = [size for path, size in half if path.endswith(TEMPORARY)]
        if sizes:
            found.append(Leftover(_HALF_WRITTEN, sum(sizes), "half written by a process that was killed", needed=False))
    return found


def discard(recipe: Recipe, found: list[Leftover]) -> None:
    """Remove leftovers of the run's folder; a file that is being written stays."""
    folder = RunFolder(recipe)
    for leftover in found:
        if leftover.name != _HALF_WRITTEN:
            folder.clear(leftover.name)
    if any(leftover.name == _HALF_WRITTEN for leftover in found):
        for place in (folder.url, *map(folder.path, folder.stages())):
            discard_unfinished(place, finished=False)


def _stage(folder: RunFolder, name: str, recipe: Recipe) -> Leftover:
    size = sum(bytes_ for _, bytes_ in walk(folder.path(name)))
    checkpoints = Checkpoints(folder.path(name), keep=1)
    newest = checkpoints.newest()
    if newest is None:
        return Leftover(name, size, "it holds no checkpoint", needed=False)
    stage, _, identity = name.rpartition("-")
    step, steps = _reached(checkpoints.load(newest))
    result = folder.read_json(PRETRAINED if stage == "pretrain" else FINETUNED)
    if stage == "pretrain" and result is not None and result["identity"] == identity and exists(folder.path(BACKBONE)):
        return Leftover(name, size, f"checkpoints of the finished run that made {BACKBONE}", needed=False)
    if stage != "pretrain" and result is not None and step == steps:
        return Leftover(name, size, "of a finished fine-tuning; the same command would train again", needed=False)
    return Leftover(
        name, size, f"at step {step} of {steps}: a run{_of_another(folder, name, recipe)} goes on from it", needed=True
    )


def _reached(state: dict[str, Any]) -> tuple[int, int]:
    """The step of a checkpoint and the last step of its run; older checkpoints hold the latter in each log line."""
    return state["step"], state["steps"] if "steps" in state else state["history"][-1]["steps"]


def _of_another(folder: RunFolder, name: str, recipe: Recipe) -> str:
    theirs = folder.read_json(f"{name}/{RECIPE}")
    ours = scrubbed_document(recipe.model_dump(mode="json"))
    found = differences(decisive(ours, "pretrain"), decisive(theirs, "pretrain")) if theirs else []
    return f" with {', '.join(f'{one.key} {one.now}' for one in found[:3])}" if found else ""
