"""What `transfer` would do, and how long its missing cells would take."""

from __future__ import annotations

import time
from collections.abc import Mapping

from pipeline.errors import RunError, UserError
from pipeline.recipe.schema import Recipe
from trainers.downstream.pretrained import Pretrained
from trainers.downstream.transfer import TransferCell, cell_recipe, cells, finished, read_starts, section, starts_as
from trainers.planning.dry_run import Facts
from trainers.planning.estimates import RunEstimate, estimate_evaluate, estimate_finetune
from trainers.planning.trial import SECONDS
from trainers.running.session import check_early


def transfer_plan(recipe: Recipe, out: str) -> Facts:
    """Say what `transfer` would do; Ray is not started.

    Raises:
        UserError: no section `transfer`, or a recipe that no cell could run with.
    """
    check_early(recipe)
    spec, every = section(recipe), cells(section(recipe))
    problems, starts = sum(len(data.problems) for data in spec.datasets.values()), read_starts(recipe)
    unread = {name: start for name, start in starts.items() if isinstance(start, str)}
    left = _missing(recipe, out, starts)
    return {
        "cells": f"{len(every)}: {len(spec.starts)} starts x {problems} problems on data sets x {len(spec.labels)} fractions of "
        f"the labels x {len(spec.seeds)} seeds",
        "command of a cell": spec.by,
        "done": len(every) - len(left) - sum(cell.start in unread for cell in every),
        "to do": len(left),
        "would fail": "; ".join(f"{start}: {why}" for start, why in unread.items()) or "none, as far as can be told",
        "folder": out,
    }


def estimate_transfer(recipe: Recipe, out: str, began: float | None = None, seconds: float = SECONDS) -> RunEstimate:
    """Measure a cell of each data set, problem and fraction, as its own command would be; other starts and seeds take as long.

    Data that cannot be read costs nothing: their cells fail at once. Arguments as of
    `trainers.planning.estimates.estimate_pretrain`.
    """
    found, spec, starts = RunEstimate(began or time.time()), section(recipe), read_starts(recipe)
    kinds: dict[tuple[str, str, float], list[TransferCell]] = {}
    for cell in _missing(recipe, out, starts):
        kinds.setdefault((cell.dataset, cell.problem, cell.labels), []).append(cell)
    estimate = estimate_finetune if spec.by == "finetune" else estimate_evaluate
    for same in kinds.values():
        of_cell, start = cell_recipe(recipe, same[0], out), starts[same[0].start]
        assert isinstance(start, Pretrained)
        try:
            one = estimate(of_cell, time.time(), seconds / len(kinds), start, (starts_as(start),))
        except (UserError, RunError):
            continue
        found.seconds += len(same) * one.seconds
        found.memory = max(found.memory, one.memory)
    if found.seconds:
        found.measured = f"a cell of each of {len(kinds)} data sets, problems and fractions of the labels"
    return found


def _missing(recipe: Recipe, out: str, starts: Mapping[str, Pretrained | str]) -> list[TransferCell]:
    """The cells that are not done and whose start can be read."""
    readable = ((cell, starts[cell.start]) for cell in cells(section(recipe)))
    return [cell for cell, start in readable if isinstance(start, Pretrained) and not finished(recipe, cell, out, start)]
