"""The results of a run as rows and as tables for a terminal: its tasks, where its time went, and its downstream accuracies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cluster.reports.formatting import amount, duration, metric
from trainers.downstream.scores import score
from trainers.running.measures import measure_words, measured_value

if TYPE_CHECKING:
    from pipeline.recipe import Recipe
    from trainers.running.leftovers import Leftover

STAGES = {
    "read": "shards to encoded bytes",
    "check": "headers",
    "render": "decode, crop, and where pairs are sent, tasks",
    "tasks": "pairs of crops, in the training workers",
    "transfer": "fetch units, make batches",
    "wait": "training waits for data",
    "step": "training computes",
}
"""Stages of a run in the order of a sample's way, with what happens there."""


def metric_names(recipe: Recipe) -> dict[str, str]:
    """The name of each task's metric."""
    from trainers.objectives import objective_class

    return {name: objective_class(task).metric for name, task in recipe.tasks.items()}


def pretext_table(tasks: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, str], steps: int = 0) -> Table:
    """Each task's first and last loss, and its last metric next to the trivial answer's; below, the tasks that were not
    learnt."""
    table = Table(
        title="pretext tasks",
        caption="\n".join(pretext_notes(tasks, steps)) or None,
        box=SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("task")
    for heading in ("first loss", "last loss", "metric", "trivial answer", "also"):
        table.add_column(heading, justify="right")
    for name, task in tasks.items():
        measured = metrics.get(name, "")
        values = (f"{metric(measured, task[key])}" for key in ("metric", "trivial"))
        also = ", ".join(f"{key} {metric(key, value)}" for key, value in task.get("also", {}).items())
        table.add_row(name, f"{task['loss'][0]:.3f}", f"{task['loss'][-1]:.3f}", *values, also)
    return table


def answer_rows(answers: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Figures of painted images in words, a row each for the answer of pixels alone, if there was an adversary, and the answer.

    Args:
        answers: of a task, see `trainers.learning.examples.example_figures`.

    Returns:
        Rows of what it is, PSNR, SSIM, sharpness and distance.
    """
    parts = {"before": "pixels alone", "answer": "answer"}
    keys = ("psnr", "ssim", "sharpness", "distance")
    return [[words, *(metric(key, answers[part][key]) for key in keys)] for part, words in parts.items() if part in answers]


def pretext_notes(tasks: Mapping[str, Mapping[str, Any]], steps: int) -> list[str]:
    """Sentences on the tasks of a pretraining that are not better than the trivial answer, and on a run too short to tell.

    Args:
        tasks: their entries in the result of `trainers.pretraining.pretrain`; those of earlier versions lack `learnt`.
        steps: updates of the run.
    """
    behind, untold = ([name for name, task in tasks.items() if task.get("learnt", "") is said] for said in (False, None))
    notes = []
    if behind:
        notes.append(
            f"not yet learnt: {', '.join(behind)} (over the last log lines not better than the trivial answer by more than "
            "three standard errors); train longer before you judge the features, or leave out what these photos cannot teach"
        )
    if untold:
        notes.append(f"too short to tell what was learnt of {', '.join(untold)}: {amount(steps, 'step')}")
    return notes


def round_rows(lines: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rounds in words, a row for each clustering of each round.

    Args:
        lines: what `rounds.json` holds, see `trainers.labelling.rounds.rounds`.

    Returns:
        Rows of the round, the effective number of clusters, their sizes, what they have in common with those of the round before
        and with labels, their purity, and of what is learnt the loss and the metric.
    """
    rows = []
    for line in lines:
        names = [name for name in line["tasks"] if name.startswith("assigned")]
        for head, one in enumerate(line["clusterings"]):
            learnt = line["tasks"][names[head]] if head < len(names) else None
            rows.append(
                [
                    f"{line['round']}",
                    f"{one['effective']:,.1f} of {one['clusters']:,}",
                    f"{one['smallest']:,} to {one['largest']:,}",
                    f"{one['before']['normalised']:.1%}" if one["before"] else "",
                    f"{one['labels']['normalised']:.1%}" if one["labels"] else "",
                    f"{one['labels']['purity']:.1%}" if one["labels"] else "",
                    f"{learnt['loss']:.3f}" if learnt else "",
                    metric("accuracy", learnt["metric"]) if learnt else "",
                ]
            )
    return rows


ROUND_HEADS = ("round", "clusters", "sizes", "as before", "labels", "purity", "loss", "accuracy")
"""What the columns of `round_rows` are; `as before` and `labels` are shares of mutual information."""


def rounds_table(lines: Sequence[Mapping[str, Any]]) -> Table:
    """Rounds of clustering and training; see `round_rows`."""
    caption = "as before, labels: mutual information with the clusters of the round before, and with the labels of the shards"
    table = Table(title="rounds", caption=caption, box=SIMPLE_HEAD, title_justify="left", caption_justify="left")
    for heading in ROUND_HEADS:
        table.add_column(heading, justify="right")
    for row in round_rows(lines):
        table.add_row(*row)
    return table


def stage_rows(stages: Mapping[str, Any]) -> list[tuple[str, str, float, float]]:
    """Stage, what happens there, milliseconds an image, share of the run's time.

    The time of a rank is `wait` and `step`; the other stages run at the same time.
    """
    seconds = {"step": stages["total"] - stages["wait"], **stages}
    images, total = max(stages["samples"], 1), stages["total"] or 1.0
    waits = stages.get("waits") or {}
    of_what = {"wait": f", mostly for {max(waits, key=waits.__getitem__)}"} if any(waits.values()) else {}
    return [
        (name, what + of_what.get(name, ""), 1000 * seconds[name] / images, seconds[name] / total)
        for name, what in STAGES.items()
        if seconds.get(name) or (name in seconds and name != "tasks")  # made there, or not at all
    ]


def stage_table(stages: Mapping[str, Any]) -> Table:
    """Where the time went."""
    first = f"first batch after {stages['first_batch'] or 0:.1f} s, training took {duration(stages['seconds'])}"
    table = Table(title="stages", caption=first, box=SIMPLE_HEAD, title_justify="left", caption_justify="left")
    table.add_column("stage")
    table.add_column("what")
    table.add_column("ms an image", justify="right")
    table.add_column("of the time", justify="right")
    for name, what, each, share in stage_rows(stages):
        table.add_row(name, what, f"{each:.2f}", f"{share:.1%}")
    return table


def leftovers_table(found: list[Leftover], going: list[Leftover]) -> Table:
    """The leftovers in a run's folder, and whether each is removed."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("what")
    table.add_column("size", justify="right")
    table.add_column("")
    table.add_column("why")
    for leftover in found:
        table.add_row(leftover.name, amount(leftover.size, "B"), "removable" if leftover in going else "stays", leftover.what)
    return table


_MEASURED = ("test", "classes", "tested", "total", "chance")
_FEW_STEPS = 100
TRIVIAL_ANSWERS = {None: "chance", "mean_iou": "the most frequent class", "ap": "the same boxes in all photos"}
"""What needs no network, by the measure of a result."""


def by_test_set(parts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Group the rows of results by the test set that they were measured on: each set has its own chance level.

    Args:
        parts: what `evaluate` and `finetune` return; those of earlier versions do not say what they were measured on, and are a
            set each.

    Returns:
        For each set `test`, `classes`, `tested`, `total` and `chance` as in a row of a result, None where it is not known; the
        `measure`, where it is not the accuracy;
        `baseline`, where `evaluate` gave one; and `rows`, those of the results as they are.
    """
    sets: list[dict[str, Any]] = []
    for part in parts:
        for row in part["downstream"]:
            about = {key: row.get(key, part.get(key)) for key in _MEASURED}
            about |= {"measure": row["measure"]} if "measure" in row else {}
            known = about["test"] is not None
            found = next(
                (one for one in sets if known and all(one.get(key) == about.get(key) for key in (*_MEASURED, "measure"))), None
            )
            if found is None:
                found = next((one for one in sets if not known and one.get("part") is part), None)
            if found is None:
                found = {**about, "baseline": None, "rows": [], "part": part}
                sets.append(found)
            found["rows"].append(row)
            found["baseline"] = part.get("baseline") if found["baseline"] is None else found["baseline"]
    return [{key: value for key, value in one.items() if key != "part"} for one in sets]


def downstream_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a protocol and number of labels: `protocol` in words, `labels`, and each start's result under its name."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        key = (_protocol(row), row["labels"])
        found.setdefault(key, {"protocol": key[0], "labels": key[1]})[row["init"]] = row
    return list(found.values())


def _protocol(row: Mapping[str, Any]) -> str:
    """The protocol, the layer that it probed, and how long it trained."""
    layer = f" on {row['layer']}" if "layer" in row else ""
    steps = row.get("steps")
    trained = "" if steps is None else f", {amount(steps, 'step')}{' only' if steps < _FEW_STEPS else ''}"
    how = ", by minibatches" if row.get("fit") == "minibatches" else ""
    return f"{row['protocol']}{layer}{trained}{how}"


def score_words(row: Mapping[str, Any] | None) -> str:
    """What was measured with its standard error, in per cent; empty without a row."""
    if row is None:
        return ""
    error = row.get("standard_error")
    spread = "" if error is None else f" ± {100 * error:.1f}"
    return f"{100 * measured_value(row):.1f}{spread} %"


def gain_words(row: Mapping[str, Any]) -> str:
    """What pretraining gained, in points, with its standard error, as if the two starts were tested on different images."""
    if "random" not in row or "pretrained" not in row:
        return ""
    gain = 100 * (measured_value(row["pretrained"]) - measured_value(row["random"]))
    errors = [row[init].get("standard_error") for init in ("random", "pretrained")]
    return f"{gain:+.1f}" if None in errors else f"{gain:+.1f} ± {100 * math.hypot(*errors):.1f}"


def coverage_words(row: Mapping[str, Any]) -> str:
    """How many of the test set's images were tested."""
    one = row.get("pretrained") or row["random"]
    return f"{one['tested']:,} of {one['total']:,}" if "tested" in one else ""


def left_out_words(left_out: Mapping[str, Mapping[str, Mapping[str, int]]]) -> list[str]:
    """Sentences on the images that a downstream command could not use, if there are any.

    Args:
        left_out: by command and set, see `trainers.downstream.passes.left_out`.
    """
    said = []
    for command, sets in left_out.items():
        for side, counts in sets.items():
            parts = [
                f"{amount(counts[why], 'image')} {words}"
                for why, words in (("unusable", "that cannot be used"), ("unlabelled", "without a label"))
                if counts[why]
            ]
            if parts:
                said.append(f"{command} left out of downstream.{side}: {' and '.join(parts)}")
    return said


def baseline_words(measured: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The results that need no network, by name, if they are known; chance is exact, and has no standard error."""
    found: list[tuple[str, dict[str, Any]]] = []
    if measured["chance"] is not None:
        found.append((TRIVIAL_ANSWERS[measured.get("measure")], {"accuracy": measured["chance"]}))
    if measured["baseline"] is not None:
        known = measured["tested"] is not None
        one = score(measured["baseline"], measured["tested"]) if known else {"accuracy": measured["baseline"]}
        found.append(("colour histogram, no network", one))
    return found


def box_notes(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Sentences on the results of detection: AP50, AP75 and the AP of each class of each start, and what was counted."""
    notes = []
    for row in (row for row in rows if "ap50" in row):
        by_class = ", ".join(f"{name} {100 * ap:.1f}" for name, ap in row["aps"].items())
        who = f"{row['init']}, {amount(row['labels'], 'label')}"
        notes.append(f"{who}: AP50 {100 * row['ap50']:.1f} %, AP75 {100 * row['ap75']:.1f} %; AP by class: {by_class}")
    if notes:
        left_out = f"; {amount(row['crowds'], 'crowd')} left out" if row["crowds"] else ""
        empty = f", {row['without_boxes']:,} of them without one" if row["without_boxes"] else ""
        notes.append(
            f"{row['boxes']:,} boxes in {amount(row['tested'], 'photo')}{empty}{left_out}; AP50 of the "
            f"same boxes in all photos: {100 * row['trivial_ap50']:.1f} %"
        )
    return notes


def downstream_tables(report: Mapping[str, Any]) -> list[Table]:
    """Pretrained against random, protocol by protocol, with the accuracies that need no network; a table for each test set."""
    tables = [_downstream_table(measured) for measured in report["test_sets"]]
    if tables and (notes := left_out_words(report.get("left_out", {}))):
        tables[-1].caption = "\n".join([str(tables[-1].caption), *notes])
    return tables


def _downstream_table(measured: Mapping[str, Any]) -> Table:
    baselines = ", ".join(f"{words} {score_words(value)}" for words, value in baseline_words(measured))
    title = f"{measure_words(measured)} on {', '.join(measured['test']) if measured['test'] else 'the test set'}"
    spread = "± is a standard error: how much the choice of test images alone changes a number"
    caption = "\n".join([baselines, *box_notes(measured["rows"]), spread])
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, title_justify="left", caption_justify="left")
    table.add_column("protocol")
    for heading in ("labels", "tested", "random", "pretrained", "gain"):
        table.add_column(heading, justify="right")
    for row in downstream_rows(measured["rows"]):
        both = [score_words(row.get(init)) for init in ("random", "pretrained")]
        table.add_row(row["protocol"], f"{row['labels']:,}", coverage_words(row), *both, gain_words(row))
    return table
