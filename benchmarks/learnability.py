"""Checks that every task can be learnt: a small network trains on each for a few minutes, and must beat the trivial answer.

    pseudolabel pack cifar10-train.tar data/cifar10/train
    pseudolabel pack cifar10-test.tar data/cifar10/test
    python -m benchmarks.learnability data/cifar10/train data/cifar10/test --clips imagenet-sample-250.tar --minutes 3

Prints a table in Markdown: the task, its metric, the trivial answer's, what was reached on samples of the second corpus that were
not trained on, and how many it was trained on. The minutes are those of processor time, so that other work on the machine takes
little from a task. `+` means that the network beats the trivial answer by more than four standard errors of the
difference of the two over batches, `-` that it does not. Tasks on clips learn from a camera that comes nearer over photos
(`benchmarks.clips`), a fifth of which are kept for the test; without `--clips` they are left out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import clips
from cluster.reports.formatting import metric
from pipeline import pairs
from pipeline.recipe import Recipe, parse_recipe
from pipeline.tasks import registry
from trainers.learning.pretext import PretextModel
from trainers.networks.inputs import decodable, to_device
from trainers.objectives import objective_class

_TEST_BATCHES = 64


def recipe_of(name: str, shards: str, size: int, batch: int) -> Recipe:
    """One task on a corpus, with its defaults."""
    frames = registry()[name].frames
    document: dict[str, Any] = {
        "name": name,
        "seed": 0,
        "corpus": {"shards": shards, **({"frames": frames} if frames > 1 else {})},
        "image": {"size": size, "scale": [0.5, 1.0]},
        "tasks": {name: {}},
        "engine": "cpu",
        "training": {"batch": batch, "backbone": {"name": "shufflenet_v2_x0_5", "stem": "standard"}},
    }
    return parse_recipe(document)


def batches(recipe: Recipe) -> Iterator[dict[str, torch.Tensor]]:
    """Epoch after epoch."""
    epoch = 0
    while True:
        for columns in pairs(recipe, epoch):
            yield to_device(decodable(columns), "cpu")
        epoch += 1


def learn(train: Recipe, test: Recipe, seconds: float) -> dict[str, Any]:
    """Train for so many seconds of processor time, rendering included, with a rate that falls to zero as they pass.

    Returns:
        `reached`, `trivial`: the metric's means over the test's samples; `errors`: by how many standard errors the first is
        better; `samples`: how many were trained on.
    """
    (name,) = train.tasks
    model = PretextModel(train, train.seed)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    started, samples = time.process_time(), 0
    for batch in batches(train):
        passed = (time.process_time() - started) / seconds
        if passed >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - passed)
        loss = model(batch)[name].minimised.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        samples += len(batch["weight"])
    model.eval()
    found = []
    with torch.no_grad():
        for _, batch in zip(range(_TEST_BATCHES), batches(test)):
            outcome = model(batch)[name]
            found.append((outcome.metric / outcome.count, outcome.trivial / outcome.count))
    reached, trivial = np.array(found).T
    better = (reached - trivial) * (1 if model.objectives[name].higher_is_better else -1)
    errors = better.mean() / (better.std(ddof=1) / len(better) ** 0.5)
    return {"reached": reached.mean(), "trivial": trivial.mean(), "errors": errors, "samples": samples}


def main() -> None:
    """Print the table, a line as soon as its task is done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("train", help="shards to learn from")
    parser.add_argument("test", help="shards to test on")
    parser.add_argument("--clips", metavar="PHOTOS", help="folder or tar of JPEGs, for tasks on clips")
    parser.add_argument("--minutes", type=float, default=2.0, help="of processor time, for each task")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--task", action="append", choices=sorted(registry()))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print("| task | metric | trivial | reached | | samples | minutes |\n| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in given.task or registry():
            corpora = given.train, given.test
            if name == "assigned":  # learns labels from tables, which these corpora do not have
                continue
            if registry()[name].frames > 1:
                if not given.clips:
                    continue
                corpora = clips.prepare(given.clips, Path(folder) / name, given.size)
            train, test = (recipe_of(name, shards, given.size, given.batch) for shards in corpora)
            found = learn(train, test, 60 * given.minutes)
            measured = objective_class(train.tasks[name]).metric
            values = " | ".join(metric(measured, found[key]) for key in ("trivial", "reached"))
            verdict = "+" if found["errors"] > 4 else "-"
            print(f"| `{name}` | {measured} | {values} | {verdict} | {found['samples']:,} | {given.minutes:g} |", flush=True)


if __name__ == "__main__":
    main()
