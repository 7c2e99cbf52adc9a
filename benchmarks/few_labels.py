"""Compares ways to learn from few labels on CIFAR-10: labels alone, S4L, FixMatch, and rotation followed by fine-tuning.

    python -m benchmarks.few_labels data/cifar10/train data/cifar10/test --minutes 2 --seeds 2 [--only s4l] [--shares 0.01,0.1]

Each row is trained, in a plain loop in this process, for as many steps as fit into its minutes of processor time, by rates that
are measured first. All see the same images, of which a share has labels (the same ones for each row of a seed), and train the
same network; `rotation, fine-tuned` spends three quarters of its time on rotation, and the last on the labels. Measured is the
accuracy of the network's own classifier on the centres of the test images, with statistics of batch normalisation measured on
training images, as `pseudolabel evaluate` does it for its protocol `head`.

Leaves `OUT/rates.json`, a file a run under `OUT/runs`, and prints a table of all that are there; runs that are there are not made
again. With `--most N` it ends after so many runs.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.methods.__main__ import seconds_a_step
from benchmarks.methods.ours import learning, stream
from benchmarks.methods.rows import HALF, MEAN, STD
from pipeline.recipe import Recipe, parse_recipe
from pipeline.rendering.units import UnitSource
from pipeline.streaming.memory import keep_memory
from trainers.downstream.features import extract
from trainers.downstream.labelled import open_labelled
from trainers.downstream.passes import Batch, usable
from trainers.downstream.pretrained import ClassHead
from trainers.downstream.statistics import MOST_IMAGES, remeasure
from trainers.learning.optim import place
from trainers.learning.pretext import PretextModel
from trainers.networks.backbones import Backbone

Tasks = dict[str, dict[str, Any]]

SUPERVISED: Tasks = {"supervised": {"classes": 10}}
ROWS: dict[str, tuple[Tasks, float | None]] = {
    "labels alone": (SUPERVISED, 1.0),
    "s4l": ({"rotation": {}, "supervised": {"classes": 10, "weight": 2}}, 0.5),
    "fixmatch": ({"fixmatch": {**HALF, "classes": 10, "weight": 8}}, 0.125),
    "rotation, fine-tuned": ({"rotation": {}}, None),
}
"""Tasks of each row, and the part of a batch that is labelled."""

TUNED = "tuned"
"""Name of the second stage of the last row."""

PRETRAINING = 0.75
"""The share of its time for the first stage."""


def recipe_of(row: str, share: float, seed: int, given: argparse.Namespace, weights: str | None = None) -> Recipe:
    """The recipe of a row, or of the stage `TUNED`."""
    tasks, part = ROWS["labels alone"] if row == TUNED else ROWS[row]
    labelled = {"share": share, "batch": part} if part else None
    return parse_recipe(
        {
            "name": "few_labels",
            "seed": seed,
            "corpus": {"shards": given.train, "labelled": labelled},
            "image": {"size": 32, "scale": [0.5, 1.0], "mean": MEAN, "std": STD},
            "tasks": tasks,
            "engine": "cpu",
            "training": {
                "backbone": {"name": given.backbone, "stem": "standard", "weights": weights},
                "batch": given.batch,
                "epochs": 10_000,
                "precision": given.precision,
                "order": {"tail": "wrap"},
                "optimizer": {"name": "sgd", "lr": 0.03 if row == TUNED else 0.06, "weight_decay": 5e-4},
            },
            "downstream": {"train": given.train, "test": given.test},
        }
    )


def trained(recipe: Recipe, seconds: float, each: float) -> tuple[PretextModel, int, float]:
    """The network after as many steps as fit into the seconds, their number, and the processor seconds that they took."""
    steps, begun = max(1, round(seconds / each)), time.process_time()
    for model in learning(recipe, steps):
        last = model
    return last, steps, time.process_time() - begun


def run(row: str, share: float, seed: int, given: argparse.Namespace, rates: dict[str, float]) -> dict[str, Any]:
    """Train and test a row."""
    seconds = 60 * given.minutes
    if row != "rotation, fine-tuned":
        recipe = recipe_of(row, share, seed, given)
        model, steps, cpu = trained(recipe, seconds, rates[row])
    else:
        first, steps, cpu = trained(recipe_of(row, share, seed, given), PRETRAINING * seconds, rates[row])
        with tempfile.NamedTemporaryFile(suffix=".pth") as file:
            torch.save(first.backbone.network.state_dict(), file.name)
            recipe = recipe_of(TUNED, share, seed, given, file.name)
            model, more, further = trained(recipe, (1 - PRETRAINING) * seconds, rates[TUNED])
        steps, cpu = steps + more, cpu + further
    return {"row": row, "share": share, "seed": seed, "steps": steps, "cpu": cpu, "accuracy": accuracy(model, recipe)}


def accuracy(model: PretextModel, recipe: Recipe) -> float:
    """The share of test images whose class the network's own classifier names."""
    backbone = place(copy.deepcopy(model.backbone), "cpu")
    assert isinstance(backbone, Backbone)
    data, network = open_labelled(recipe), {"vector": backbone.embedding(None)}
    remeasure(network, _passed(data.training_some(MOST_IMAGES)), data.recipe)
    test = extract(network, _passed(data.testing()), data.recipe)
    (objective,) = (model.objectives[name] for name, task in recipe.tasks.items() if task.learns_classes)
    weight, bias = (part.detach().numpy() for part in objective.head[-1].parameters())
    head = ClassHead(weight, bias, data.classes.names, 0)
    return float((head.named(test.x["vector"], data.classes.names) == test.y).mean())


def _passed(source: UnitSource) -> Iterator[Batch]:
    for columns in stream(source):
        yield usable(columns, torch.device("cpu"))


def table(runs: list[dict[str, Any]]) -> str:
    """All runs as Markdown, a line a row, a column a share."""
    shares = sorted({run["share"] for run in runs})
    lines = [f"| trained on | {' | '.join(f'{share:.0%} of the labels, %' for share in shares)} | steps |"]
    lines.append("| --- |" + " ---: |" * (len(shares) + 1))
    for row in ROWS:
        own = [run for run in runs if run["row"] == row]
        if own:
            cells = [spread([run["accuracy"] for run in own if run["share"] == share]) for share in shares]
            lines.append(f"| {row} | {' | '.join(cells)} | {statistics.mean(run['steps'] for run in own):,.0f} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds, in per cent."""
    if not values:
        return ""
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f}"


def main() -> None:
    """Train, test and report, a run at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", help="labelled shards to learn from, as `pseudolabel pack` makes them")
    parser.add_argument("test", help="labelled shards to test on")
    parser.add_argument("--minutes", type=float, default=2.0, help="of processor time, for each training")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--shares", default="0.01,0.1", help="of the labels, separated by commas")
    parser.add_argument("--only", help="a row: " + "; ".join(ROWS))
    parser.add_argument("--backbone", default="resnet10")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--most", type=int, default=10_000, help="runs to make now")
    parser.add_argument("--out", type=Path, default=Path("runs/few_labels"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    (given.out / "runs").mkdir(parents=True, exist_ok=True)
    rates_file = given.out / "rates.json"
    if not rates_file.exists():
        rates_file.write_text(
            json.dumps({row: seconds_a_step(partial(learning, recipe_of(row, 0.1, 0, given))) for row in (*ROWS, TUNED)})
        )
    rates, left = json.loads(rates_file.read_text()), given.most
    wanted = [(seed, float(share), row) for seed in range(given.seeds) for share in given.shares.split(",") for row in ROWS]
    for seed, share, row in wanted:
        path = given.out / "runs" / f"{row.replace(', ', '-').replace(' ', '-')}-{share:g}-{seed}.json"
        if path.exists() or left <= 0 or (given.only and row != given.only):
            continue
        found = run(row, share, seed, given, rates)
        path.write_text(json.dumps(found))
        print(
            f"{row}, {share:.0%}, seed {seed}: {found['steps']} steps, {found['cpu']:.0f} s: {100 * found['accuracy']:.1f} %",
            flush=True,
        )
        left -= 1
    print(table([json.loads(path.read_text()) for path in sorted((given.out / "runs").glob("*.json"))]))


if __name__ == "__main__":
    main()
