"""What a run came to: its tasks, where its time went, and what its features are worth, as rows and as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cluster.words import duration, metric

if TYPE_CHECKING:
    from pipeline.recipe import Recipe

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


def pretext_table(tasks: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, str]) -> Table:
    """Each task's first and last loss, and its last metric beside the trivial answer's."""
    table = Table(title="pretext tasks", box=SIMPLE_HEAD, title_justify="left")
    table.add_column("task")
    for heading in ("loss at first", "loss at last", "metric", "trivial answer", "also"):
        table.add_column(heading, justify="right")
    for name, task in tasks.items():
        measured = metrics.get(name, "")
        values = (f"{metric(measured, task[key])}" for key in ("metric", "trivial"))
        also = ", ".join(f"{key} {metric(key, value)}" for key, value in task.get("also", {}).items())
        table.add_row(name, f"{task['loss'][0]:.3f}", f"{task['loss'][-1]:.3f}", *values, also)
    return table


def stage_rows(stages: Mapping[str, Any]) -> list[tuple[str, str, float, float]]:
    """Stage, what happens there, milliseconds an image, share of the run's time.

    The time of a rank is `wait` and `step`; the other stages run beside it.
    """
    seconds = {"step": stages["total"] - stages["wait"], **stages}
    images, total = max(stages["samples"], 1), stages["total"] or 1.0
    waits = stages.get("waits") or {}
    of_what = {"wait": f", mostly for {max(waits, key=waits.__getitem__)}"} if any(waits.values()) else {}
    return [
        (name, what + of_what.get(name, ""), 1000 * seconds[name] / images, seconds[name] / total)
        for name, what in STAGES.items()
        if seconds.get(name) or (name in seconds and name != "tasks")  # which are made there, or not at all
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


def downstream_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a protocol and number of labels, with the accuracy of each start under its name."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for found in report["downstream"]:
        key = (found["protocol"], found["labels"])
        rows.setdefault(key, {"protocol": key[0], "labels": key[1]})[found["init"]] = found["accuracy"]
    return list(rows.values())


def downstream_table(report: Mapping[str, Any]) -> Table:
    """Pretrained against random, protocol by protocol, with what needs no network."""
    beside = [
        f"{words} {metric('accuracy', report[key])}"
        for key, words in (("chance", "chance"), ("baseline", "colour histogram"))
        if report[key] is not None
    ]
    table = Table(
        title="accuracy on the test set", caption=", ".join(beside), box=SIMPLE_HEAD, title_justify="left", caption_justify="left"
    )
    table.add_column("protocol")
    for heading in ("labels", "random", "pretrained", "gain"):
        table.add_column(heading, justify="right")
    for row in downstream_rows(report):
        both = [row.get("random"), row.get("pretrained")]
        gain = "" if None in both else f"{100 * (both[1] - both[0]):+.1f}"  # type: ignore[operator]
        table.add_row(row["protocol"], f"{row['labels']:,}", *("" if v is None else metric("accuracy", v) for v in both), gain)
    return table
