"""Transfer: starts x data sets x problems x label fractions x seeds, a downstream run each, and their results as one table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from pipeline.errors import RunError, UserError
from pipeline.recipe.downstream import Downstream
from pipeline.recipe.schema import Recipe
from pipeline.recipe.transfer import Transfer
from pipeline.storage import absolute, exists, join, make_folder, scrubbed, scrubbed_document, write_atomic
from trainers.downstream.evaluate import evaluate
from trainers.downstream.finetune import finetune
from trainers.downstream.labelled import INITS
from trainers.downstream.pretrained import Pretrained, read_start
from trainers.downstream.problems import PROBLEMS
from trainers.running.exclusive import exclusive
from trainers.running.measures import measured_value
from trainers.running.run_log import Record
from trainers.running.runs import RunFolder, json_bytes, read_json
from trainers.running.session import connect

RESULT, CELL = "transfer.json", "transfer.cell.json"
DONE, FAILED = "done", "failed"

_KEPT = ("protocol", "layer", "measure", "standard_error", "chance", "labels", "tested", "total", "steps", "fit")
"""What a cell's result keeps of a row of its run, beside the value."""


@dataclass(frozen=True)
class TransferCell:
    """One downstream run of a transfer.

    Args:
        dataset: name of the data set.
        problem: what is learnt.
        labels: the fraction of the labels.
        seed: the seed.
        start: name of the start.
    """

    dataset: str
    problem: str
    labels: float
    seed: int
    start: str

    @property
    def words(self) -> str:
        """What it is, for people."""
        return f"{self.start}: {self.problem} on {self.dataset}, {100 * self.labels:g} % of the labels, seed {self.seed}"


def cells(spec: Transfer) -> list[TransferCell]:
    """All cells of a transfer, in order."""
    return [
        TransferCell(dataset, problem, labels, seed, start)
        for dataset, held in spec.datasets.items()
        for problem, labels, seed, start in product(held.problems, spec.labels, spec.seeds, spec.starts)
    ]


def section(recipe: Recipe) -> Transfer:
    """The recipe's section `transfer`; raises `UserError` where it has none."""
    if recipe.transfer is None:
        raise UserError(
            "the recipe has no `transfer` section, which names starts and labelled data: transfer.starts and transfer.datasets"
        )
    return recipe.transfer


def cell_recipe(recipe: Recipe, cell: TransferCell, out: str) -> Recipe:
    """The recipe of a cell: its run's folder is `<out>/<start>/<data set>/<problem, fraction and seed>`."""
    spec, data = section(recipe), section(recipe).datasets[cell.dataset]
    common = recipe.downstream.model_dump(mode="json") if recipe.downstream else {}
    own = {"train": data.train, "test": data.test, "problem": cell.problem, "labels": cell.labels}
    if cell.problem != "segmentation":
        common.pop("head", None)
    training = recipe.training
    return recipe.model_copy(
        update={
            "name": f"{cell.problem}-{cell.labels:g}-seed{cell.seed}-{spec.by}",
            "seed": cell.seed,
            "storage": recipe.storage.model_copy(update={"runs": join(absolute(out), f"{cell.start}/{cell.dataset}")}),
            "training": training.model_copy(update={"backbone": training.backbone.model_copy(update={"weights": None})}),
            "downstream": Downstream.model_validate({**common, **own}),
            "transfer": None,
        }
    )


def transfer(
    recipe: Recipe,
    out: str,
    listeners: list[Callable[[Record], None]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Run all cells of the recipe's section `transfer` that are not done yet, one after the other.

    Each cell is a run of `finetune` or `evaluate` in a folder of its own, with one start. When it is done, its result is written
    there as `transfer.cell.json`, and its checkpoints and weights are removed. After an interruption the same call goes on with
    the cells that are missing, the one that was under way from its last checkpoint. A cell that fails is named with its reason,
    the others go on, and the next call tries it again. Leaves `transfer.json` in `out` (what is returned), which holds no times,
    so that it is the same however often it was interrupted.

    Args:
        recipe: the recipe.
        out: folder for all of it, path or URL.
        listeners: called with each log line of each cell.
        progress: called with (cells that are over, all cells).

    Returns:
        `by`, the command; `starts`, each with its kind (`run`, `weights` or `random`); `cells`: of each its names, `status`,
        `reason` if it failed, else `rows`, what was measured; and `table`, see `tabulated`.

    Raises:
        UserError: no section, or the folder cannot be written.
    """
    spec, every = section(recipe), cells(section(recipe))
    connect(recipe)
    with exclusive(f"transfer into {absolute(out)}"):
        _make(out)
        starts, found = read_starts(recipe), []
        for number, cell in enumerate(every):
            if progress is not None:
                progress(number, len(every))
            found.append({**asdict(cell), **_result(recipe, cell, out, starts[cell.start], listeners or [])})
        if progress is not None:
            progress(len(every), len(every))
        outcome = scrubbed_document({"by": spec.by, "starts": _kinds(spec), "cells": found, "table": tabulated(found)})
        with write_atomic(join(absolute(out), RESULT)) as file:
            file.write(json_bytes(outcome))
    return outcome


def read_starts(recipe: Recipe) -> dict[str, Pretrained | str]:
    """The weights of each start, or in words why there are none."""
    found: dict[str, Pretrained | str] = {}
    for name, start in section(recipe).starts.items():
        try:
            found[name] = read_start(recipe, start)
        except UserError as error:
            found[name] = str(error)
    return found


def finished(recipe: Recipe, cell: TransferCell, out: str, backbone: Pretrained) -> dict[str, Any] | None:
    """The result of a cell that is done, None if there is none of this recipe and start."""
    of_cell = cell_recipe(recipe, cell, out)
    url = RunFolder(of_cell).path(CELL)
    held = read_json(url) if exists(url) else None
    return held if held and held["identity"] == _identity(of_cell, recipe, backbone) else None


def tabulated(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the cells that differ in start and seed together.

    Returns:
        Rows of `dataset`, `problem`, `protocol`, `labels` (the fraction), `images` (labelled ones, of the first cell), `measure`,
        and `starts`: for each its `mean` over seeds, `standard_error` (of one seed that of its test images, of several that of
        the mean) and `values`.
    """
    table: dict[tuple[Any, ...], dict[str, Any]] = {}
    held: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    for cell in found:
        for row in cell.get("rows", ()):
            key = (cell["dataset"], cell["problem"], row["protocol"], cell["labels"])
            names = dict(zip(("dataset", "problem", "protocol", "labels"), key))
            table.setdefault(key, {**names, "images": row["labels"], "measure": row.get("measure", "accuracy")})
            held.setdefault(key, {}).setdefault(cell["start"], []).append(row)
    groups = list(dict.fromkeys(key[:3] for key in table))  # fractions of one protocol stand together
    order = sorted(table, key=lambda key: groups.index(key[:3]))
    return [{**table[key], "starts": {start: _mean(rows) for start, rows in held[key].items()}} for key in order]


def _mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    values = [row["value"] for row in rows]
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else rows[0]["standard_error"]
    return {"mean": statistics.fmean(values), "standard_error": error, "values": values}


def _result(
    recipe: Recipe, cell: TransferCell, out: str, backbone: Pretrained | str, listeners: list[Callable[[Record], None]]
) -> dict[str, Any]:
    """The rows of a cell, which is run if it is not done yet; or the reason why it failed."""
    if isinstance(backbone, str):
        return {"status": FAILED, "reason": scrubbed(backbone)}
    try:
        done = finished(recipe, cell, out, backbone)
        rows = done["rows"] if done else _run(recipe, cell_recipe(recipe, cell, out), backbone, listeners)
    except (UserError, RunError) as error:
        return {"status": FAILED, "reason": scrubbed(str(error))}
    return {"status": DONE, "rows": rows}


def _run(
    recipe: Recipe, of_cell: Recipe, backbone: Pretrained, listeners: list[Callable[[Record], None]]
) -> list[dict[str, Any]]:
    folder = RunFolder(of_cell)
    _make(folder.url)
    init = starts_as(backbone)
    if section(recipe).by == "finetune":
        result = finetune(of_cell, listeners, backbone=backbone, inits=(init,))
    else:
        result = evaluate(of_cell, listeners, backbone=backbone, inits=(init,), pictures=False)
    rows = [
        {**{key: row[key] for key in _KEPT if key in row}, "value": measured_value(row), "left_out": result["left_out"]["test"]}
        for row in result["downstream"]
    ]
    folder.write_json(CELL, {"identity": _identity(of_cell, recipe, backbone), "rows": rows})
    for stage in folder.stages():
        folder.clear(stage)
    for problem in PROBLEMS.values():
        folder.remove(f"{problem.weights}.pt")
    return rows


def starts_as(backbone: Pretrained) -> str:
    """Which of `INITS` a start is."""
    return INITS[0] if backbone.weights else INITS[1]


def _identity(of_cell: Recipe, recipe: Recipe, backbone: Pretrained) -> str:
    return f"{RunFolder(of_cell).identity(section(recipe).by)}-{backbone.identity}"


def _kinds(spec: Transfer) -> dict[str, str]:
    return {name: "run" if start.run else "weights" if start.weights else "random" for name, start in spec.starts.items()}


def _make(url: str) -> None:
    try:
        make_folder(absolute(url))
    except OSError as error:
        raise UserError(f"--out: {url} cannot be written: {error.strerror or error}") from None
