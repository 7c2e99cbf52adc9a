"""The report of a run: all that its folder holds, as `report.json` for programs and `report.html`, one file, for people."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cluster.pictures import boxes, masks
from cluster.pictures.examples import neighbours, painted
from cluster.pictures.findings import confused_words, confusion_matrix, feature_map, wrong_photos
from cluster.reports.curves import rate_curve, task_curves, tuning_curves
from cluster.reports.formatting import amount, difference, duration, metric
from cluster.reports.html import environment, png_uri, uri
from cluster.reports.machine import Machine, this_machine, versions
from cluster.reports.tables import (
    ROUND_HEADS,
    answer_rows,
    baseline_words,
    box_notes,
    by_test_set,
    coverage_words,
    downstream_rows,
    gain_words,
    left_out_words,
    metric_names,
    pretext_notes,
    round_rows,
    score_words,
    stage_rows,
)
from pipeline.errors import RunError, UserError
from pipeline.recipe import Recipe
from pipeline.storage import scrubbed_document, write_atomic
from trainers.running.measures import measure_words, measured_value
from trainers.running.runs import ANSWERS, EVALUATED, EXAMPLES, FINDINGS, FINETUNED, PRETRAINED, RECIPE, RunFolder

if TYPE_CHECKING:
    from PIL.Image import Image

JSON, HTML = "report.json", "report.html"

_ROWS = 4  # of the preview sheet
_DRAWN = {"mean_iou": ("masks", masks.masked, masks.legend), "ap": ("boxes", boxes.boxed, boxes.legend)}
_TRAINED: dict[str | None, str] = {"mean_iou": "pixel accuracy", "ap": "box IoU"}
"""What a problem is trained by, see `DownstreamProblem.metric`, by the measure of its results."""


def write_report(recipe: Recipe) -> dict[str, Any]:
    """Gather what the run's folder holds so far and write `report.json` and `report.html` into it.

    Args:
        recipe: the recipe of the command that has just ended.

    Returns:
        The content of `report.json`: `pretrain`, `downstream` (all rows), `test_sets` (the same rows by what they were measured
        on, see `cluster.reports.tables.by_test_set`), `chance` and `baseline` (where there is one test set), `quarantined`;
        `left_out`, for each downstream command and set how many images were not used, and why; `tuning`, curves of fine-tuning
        by start; `name`, `seed`, `date`, `versions`, `machine`; `recipe` and `recipe_sha256` of
        what was pretrained, else of the command; and `differs`, for each downstream command the keys in which its recipe was
        another, with both values. What no command has computed yet is None, or empty.

    Raises:
        RunError: the folder cannot be written.
    """
    folder = RunFolder(recipe)
    found = {name: folder.read_json(name) for name in (PRETRAINED, FINETUNED, EVALUATED, RECIPE)}
    machine = this_machine()
    report = scrubbed_document(_gather(recipe, found, machine))
    page = _page(recipe, report, machine)
    try:
        folder.write_json(JSON, report)
        with write_atomic(folder.path(HTML)) as file:
            file.write(page.encode())
    except OSError as error:
        raise RunError(f"the report cannot be written: {error}; the run's results are complete without it") from error
    return report


def _gather(recipe: Recipe, found: dict[str, Any], machine: Machine) -> dict[str, Any]:
    pretrain = found[PRETRAINED]
    # Results of another backbone than the one that the folder holds now are left out.
    current = {"evaluate": found[EVALUATED], "finetune": found[FINETUNED]}
    downstream = {
        command: part
        for command, part in current.items()
        if part and (pretrain is None or part["pretraining"] == pretrain["identity"])
    }
    measured = by_test_set(downstream.values())
    only = measured[0] if len(measured) == 1 else {}
    document, digest = recipe.model_dump(mode="json"), recipe.digest()
    if pretrain is not None and found[RECIPE] is not None and "recipe_sha256" in pretrain:
        document, digest = found[RECIPE], pretrain["recipe_sha256"]
    return {
        "name": recipe.name,
        "seed": document["seed"],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "pretrain": pretrain,
        "downstream": [row for part in downstream.values() for row in part["downstream"]],
        "test_sets": measured,
        "chance": only.get("chance"),
        "baseline": only.get("baseline"),
        "quarantined": pretrain["quarantined"] if pretrain else None,
        "left_out": {command: part["left_out"] for command, part in downstream.items() if "left_out" in part},
        "tuning": downstream["finetune"].get("curves", {}) if "finetune" in downstream else {},
        "recipe": document,
        "recipe_sha256": digest,
        "differs": {command: part["differs"] for command, part in downstream.items() if "differs" in part},
        "versions": versions(),
        "machine": machine.as_dict(),
    }


def _page(recipe: Recipe, report: dict[str, Any], machine: Machine) -> str:
    templates = environment()
    filters: dict[str, Any] = {
        "share": lambda value: metric("accuracy", value),
        "duration": duration,
        "score": score_words,
        "gain": gain_words,
        "coverage": coverage_words,
        "value": measured_value,
    }
    templates.filters |= filters
    pretrain = report["pretrain"]
    names = metric_names(recipe)
    sheet, no_sheet = _sheet(recipe)
    from trainers.learning.examples import read_pictures

    pictures = read_pictures(RunFolder(recipe).path(EXAMPLES), pretrain["identity"]) if pretrain else {}
    tuned = [row for row in report["downstream"] if row["protocol"] == "finetune"]
    measure = next((row.get("measure") for row in tuned), None)
    painted_figures = (pretrain or {}).get("answers", {})
    return templates.get_template("report.html").render(
        report=report,
        measured=[_measured(one) for one in report["test_sets"]],
        answers=_answers(RunFolder(recipe), measure),
        findings=_findings(RunFolder(recipe)) if any(row["protocol"] != "finetune" for row in report["downstream"]) else {},
        left_out=left_out_words(report["left_out"]),
        tasks=_tasks(pretrain["tasks"], names) if pretrain else [],
        rate=_svg(_rate(report["recipe"]["training"], pretrain["steps"])) if pretrain else None,
        tuning=_svg(tuning_curves(report["tuning"], _TRAINED.get(measure, "accuracy"))) if report["tuning"] else None,
        notes=pretext_notes(pretrain["tasks"], pretrain["steps"]) if pretrain else [],
        round_heads=ROUND_HEADS,
        rounds=round_rows(pretrain["rounds"]) if pretrain and "rounds" in pretrain else [],
        stages=stage_rows(pretrain["stages"]) if pretrain else [],
        sheet=sheet,
        judged=any("before" in figures for figures in painted_figures.values()),
        painted={name: (_png(rows), answer_rows(painted_figures.get(name, {}))) for name, rows in painted(pictures).items()},
        neighbours=_png(neighbours(pictures)) if "neighbours" in pictures else None,
        no_sheet=no_sheet,
        machine={
            "processor": f"{machine.cpu}, {machine.cores} cores",
            "memory": amount(machine.memory, "B"),
            "GPU": "; ".join(machine.gpus) or "none",
            "system": machine.system,
        },
        recipe=json.dumps(report["recipe"], indent=2, ensure_ascii=False),
    )


def _answers(folder: RunFolder, measure: str | None) -> dict[str, Any] | None:
    """Test photos with their masks or boxes and the predicted ones, of the fine-tuning whose result the folder holds."""
    from trainers.learning.examples import read_pictures

    if measure not in _DRAWN:
        return None
    pictures = read_pictures(folder.path(ANSWERS), (folder.read_json(FINETUNED) or {}).get("pretraining", ""))
    kind, draw, legend = _DRAWN[measure]
    return {"kind": kind, "picture": _png(draw(pictures)), "legend": legend(pictures)} if pictures else None


def _findings(folder: RunFolder) -> dict[str, Any]:
    """What the evaluation left to look at whose result the folder holds, as the page shows it."""
    from trainers.learning.examples import read_pictures

    held = read_pictures(folder.path(FINDINGS), (folder.read_json(EVALUATED) or {}).get("pretraining", ""))
    if not held:
        return {}
    init, protocol, layer = held["about"].tolist()
    return {
        "about": f"{protocol} on {layer}, from {init} weights",
        "confusion": png_uri(confusion_matrix(held)),
        "confused": confused_words(held),
        "wrong": _png(wrong_photos(held)) if len(held["wrong"]) else None,
        "map": png_uri(feature_map(held)) if len(held["points"]) > 1 else None,
        "map_how": str(held["points_how"]),
        "points": len(held["points"]),
    }


def _measured(one: dict[str, Any]) -> dict[str, Any]:
    """A test set as the page shows it."""
    words = {"measured": measure_words(one)} if "measure" in one else {}
    return {**one, **words, "rows": downstream_rows(one["rows"]), "beside": baseline_words(one), "notes": box_notes(one["rows"])}


def _tasks(tasks: dict[str, Any], names: dict[str, str]) -> list[dict[str, Any]]:
    """Each task's last numbers in words, and its curves."""
    shown = []
    for name, task in tasks.items():
        measured = names.get(name) or task.get("measured", "metric")
        shown.append(
            {
                "name": name,
                "measured": "PSNR" if measured == "psnr" else measured,
                "loss": f"{task['loss'][-1]:.3f}",
                "metric": metric(measured, task["metric"]),
                "trivial": metric(measured, task["trivial"]),
                "margin": _margin(task, measured),
                "also": ", ".join(f"{key} {metric(key, value)}" for key, value in task.get("also", {}).items()),
                "behind": task.get("learnt", "") is False,
                "curves": _svg(task_curves(task, measured)),
            }
        )
    return shown


def _rate(training: dict[str, Any], steps: int) -> bytes:
    """The learning rate over a run, of a recipe's section `training`."""
    from pipeline.recipe.training import Optimizer
    from trainers.learning.optim import learning_rate

    spec, shown = Optimizer(**training["optimizer"]), sorted({round(i * steps / 200) for i in range(201)})
    return rate_curve([learning_rate(spec, step, steps, training["batch"]) for step in shown], shown)


def _margin(task: dict[str, Any], measured: str) -> str | None:
    """How much the metric exceeds the trivial answer's over the last log lines, with its standard error; None if not known."""
    margin, error = task.get("margin"), task.get("margin_error")
    if margin is None or error is None:
        return None
    return difference(measured, margin, error)


def _sheet(recipe: Recipe) -> tuple[str | None, str | None]:
    """The preview sheet as a data URI, or why there is none: a report is written even if the corpus cannot be reached."""
    from cluster.pictures.preview import sheet

    try:
        picture = sheet(recipe, _ROWS)
    except (UserError, RunError) as error:
        return None, str(error)
    return _png(picture), None


def _svg(drawing: bytes) -> str:
    """A drawing as a data URI."""
    return uri("image/svg+xml", drawing)


def _png(picture: Image) -> str:
    """A picture as a data URI."""
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return png_uri(file.getvalue())
