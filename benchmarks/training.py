"""Compares training steps: a plain PyTorch loop on ready tensors, the same loop with loaders, and this project's run.

    python -m benchmarks.training PHOTOS [--sizes 64 224] [--methods rotation simclr] [--precisions float32 bfloat16] [--who ours]

PHOTOS is a folder or tar of JPEGs. The networks are torchvision's ResNet-18 at 64 pixels and ResNet-50 at 224, in batches of
32 and 16. All ways train the same backbone by SGD and take turns, each turn in a process of its own. CPU time is that of this
process and all its children. A row says what was trained in a second and in a second of CPU time, medians of rounds, and their
ratios to the loop on ready tensors, medians of the ratios of each round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import cpu_seconds, family
from benchmarks.photos import Photos, prepare
from pipeline.recipe import Recipe, parse_recipe
from pipeline.streaming.connection import let_threads_sleep

NETWORKS = {64: ("resnet18", 32), 224: ("resnet50", 16)}
READY = "plain loop, ready tensors"
_WARM = 3
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def recipe_of(asked: dict[str, Any], runs: str = "runs", workers: int = 1) -> Recipe:
    """The recipe of a method, size and precision."""
    name, batch = NETWORKS[asked["size"]]
    return parse_recipe(
        {
            "name": "training",
            "seed": 0,
            "corpus": {"shards": asked["shards"]},
            "image": {"size": asked["size"], "mean": _MEAN, "std": _STD},
            "engine": "cpu",
            "tasks": {asked["method"]: {}},
            "placement": {"cpus": 0.5},
            "training": {
                "backbone": {"name": name, "stem": "standard"},
                "batch": batch,
                "epochs": 1000,
                "precision": asked["precision"],
                "workers": workers,
                "log_steps": 1,
                "optimizer": {"name": "sgd", "lr": 0.01, "clip": None},
            },
            "storage": {"runs": runs},
            "tracking": {"tensorboard": False},
        }
    )


def plain(asked: dict[str, Any], load: Callable[[Recipe], Iterator[tuple[Any, Any]]]) -> Iterator[int]:
    """Train in a loop as one writes it by hand; yields the samples of each step.

    Args:
        asked: the method, size, precision and shards.
        load: gives inputs, float (n, 3, s, s) or a list of views, and labels.
    """
    import torch
    from lightly.loss import NTXentLoss
    from torch import nn
    from torch.nn import functional as F

    from trainers.networks.backbones import build_backbone
    from trainers.objectives.views import mlp

    recipe = recipe_of(asked)
    backbone = build_backbone(recipe.training.backbone, asked["size"], 0, ("vector",))
    width = backbone.vector_width
    head = nn.Linear(width, 4) if asked["method"] == "rotation" else mlp([width, width, 128])
    model = nn.ModuleList([backbone, head]).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    contrast = NTXentLoss(temperature=0.1)
    for inputs, labels in load(recipe):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=asked["precision"] == "bfloat16"):
            if asked["method"] == "rotation":
                loss = F.cross_entropy(head(backbone(inputs).vector), labels)
            else:
                first, second = head(backbone(torch.cat(inputs)).vector).float().chunk(2)
                loss = contrast(first, second)
        loss.backward()
        optimizer.step()
        yield recipe.training.batch


def columns_of(recipe: Recipe) -> dict[str, Any]:
    """One batch of a recipe, as the run's step takes it."""
    from pipeline.streaming.pairs import pairs

    return next(pairs(recipe))


def ready(recipe: Recipe) -> Iterator[tuple[Any, Any]]:
    """One batch over and over, normalised before the first step."""
    import torch

    from trainers.networks.inputs import network_input

    name, columns = next(iter(recipe.tasks)), columns_of(recipe)
    pixels = torch.from_numpy(np.ascontiguousarray(columns[f"{name}.input"]))
    mean, std = torch.tensor(_MEAN), torch.tensor(_STD)
    if name == "rotation":
        batch: tuple[Any, Any] = network_input(pixels, mean, std), torch.from_numpy(columns["rotation.label"])
    else:
        batch = [network_input(pixels[:, view], mean, std) for view in (0, 1)], None
    while True:
        yield batch


def by_torchvision(recipe: Recipe) -> Iterator[tuple[Any, Any]]:
    """A DataLoader over webdataset with torchvision's transforms, with one worker process."""
    import torch

    from benchmarks.contenders import dataloader, views_torchvision
    from benchmarks.work import Job

    job = Job(tuple(recipe.corpus.shards), recipe.image.size, tuple(recipe.tasks), batch=recipe.training.batch, workers=1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (_MEAN, _STD))

    def tensors(pixels: np.ndarray) -> Any:
        x = (torch.from_numpy(pixels).float() / 255 - mean) / std
        return x.contiguous(memory_format=torch.channels_last)

    if "rotation" in recipe.tasks:
        for columns in dataloader.batches(job):
            yield tensors(columns["rotation.input"]), torch.from_numpy(columns["rotation.label"])
    for columns in views_torchvision.batches(job):
        yield [tensors(columns["simclr.input"][:, view]) for view in (0, 1)], None


def by_lightly(recipe: Recipe) -> Iterator[tuple[Any, Any]]:
    """A DataLoader with lightly's transforms on PIL images, with one worker process."""
    from lightly.transforms import SimCLRTransform
    from torch.utils.data import DataLoader

    from benchmarks.methods.by_lightly import _Photos

    views = SimCLRTransform(recipe.image.size, normalize={"mean": list(_MEAN), "std": list(_STD)})
    photos = _Photos(recipe.corpus.shards[:4], views)
    loader: DataLoader[Any] = DataLoader(
        photos, recipe.training.batch, shuffle=True, drop_last=True, num_workers=1, persistent_workers=True
    )
    while True:
        for inputs in loader:
            yield inputs, None


def step_alone(asked: dict[str, Any]) -> Iterator[int]:
    """The run's step on one batch over and over."""
    from trainers.learning.gradients import accumulate
    from trainers.learning.optim import place
    from trainers.learning.pretext import PretextModel
    from trainers.learning.update import Update

    recipe = recipe_of(asked)
    spec, columns = recipe.training, columns_of(recipe)
    model = place(PretextModel(recipe, 0), "cpu").train()
    update, step = Update(model, spec.optimizer, 10**6, spec.batch), 0
    while True:
        update.begin(step)
        accumulate(model, recipe.tasks, columns, spec.batch, spec.precision)
        update.finish()
        step += 1
        yield spec.batch


def run(asked: dict[str, Any], workers: int, stepped: Callable[[int], None]) -> None:
    """`pretrain` itself, whose log lines tell each step."""
    from trainers.pretraining import pretrain

    def listen(record: dict[str, Any]) -> None:
        if "tasks" in record:
            stepped(recipe_of(asked).training.batch)

    with tempfile.TemporaryDirectory() as runs:
        pretrain(recipe_of(asked, runs, workers), [listen])


LOOPS: dict[str, Callable[[dict[str, Any]], Iterator[int]]] = {
    READY: lambda asked: plain(asked, ready),
    "plain loop, DataLoader + torchvision": lambda asked: plain(asked, by_torchvision),
    "plain loop, DataLoader + lightly": lambda asked: plain(asked, by_lightly),
    "ours, the step alone": step_alone,
}
RUNS = {"ours, `training.workers: 0`": 0, "ours, one worker": 1}


class Window:
    """Counts the steps of a time after the first few, and ends the process with what it counted as a line of JSON."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._steps, self._samples, self._cpu, self._began = seconds, 0, 0, 0.0, 0.0

    def __call__(self, samples: int) -> None:
        self._steps += 1
        if self._steps == _WARM:
            self._cpu, self._began = cpu_seconds(family()), time.perf_counter()
        elif self._steps > _WARM:
            self._samples += samples
            if (seconds := time.perf_counter() - self._began) >= self._seconds:
                print(json.dumps([self._samples, seconds, cpu_seconds(family()) - self._cpu]), flush=True)
                os._exit(0)


def child() -> None:
    """Run the process that `once` starts."""
    import torch

    asked = json.loads(sys.stdin.read())
    stepped = Window(asked["seconds"])
    if asked["way"] in RUNS:
        run(asked, RUNS[asked["way"]], stepped)
    torch.manual_seed(0)
    for samples in LOOPS[asked["way"]](asked):
        stepped(samples)


def once(asked: dict[str, Any]) -> tuple[float, float]:
    """Samples a second, and samples a second of CPU time, of one way in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.training", "--child"]
    done = subprocess.run(words, input=json.dumps(asked), stdout=subprocess.PIPE, text=True, check=True)
    samples, seconds, cpu = json.loads(done.stdout.splitlines()[-1])
    return samples / seconds, samples / cpu


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="folder or tar of JPEGs")
    parser.add_argument("--folder", type=Path, default=Path(".bench"), help="where the shards go; made once")
    parser.add_argument("--sizes", type=int, nargs="*", default=list(NETWORKS))
    parser.add_argument("--methods", nargs="*", default=["rotation", "simclr"])
    parser.add_argument("--precisions", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--who", nargs="*", help="ways whose name contains one of these, besides the loop on ready tensors")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of a turn")
    given = parser.parse_args()
    let_threads_sleep()
    photos: Photos = prepare(given.photos, given.folder.resolve(), "500x375")
    for size, method, precision in product(given.sizes, given.methods, given.precisions):
        asked = {"size": size, "method": method, "precision": precision, "seconds": given.seconds, "shards": photos.shards}
        ways = [way for way in (*LOOPS, *RUNS) if method == "simclr" or "lightly" not in way]
        if given.who:
            ways = [way for way in ways if way == READY or any(part in way for part in given.who)]
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(given.rounds):
            for way in ways:
                found[way].append(once({**asked, "way": way}))
        print(f"\n{method}, {NETWORKS[size][0]} at {size} pixels, {precision}\n")
        print("| | images/s | of ready | images/CPU s | of ready |\n| --- | ---: | ---: | ---: | ---: |")
        for way, rates in found.items():
            cells = []
            for by in (0, 1):
                ratios = [rate[by] / best[by] for rate, best in zip(rates, found[READY], strict=True)]
                cells += [f"{statistics.median(rate[by] for rate in rates):.1f}", f"{statistics.median(ratios):.2f}"]
            print(f"| {way} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    child() if sys.argv[1:2] == ["--child"] else main()
