"""Measures what a second thread gains: for the tasks on crops, and for one training step of a ResNet-18 at 64 pixels.

    python -m benchmarks.threads [--pairs 15] [--batch 64] [--size 64]

No data is read: the crops are drawn at random. One thread and two are measured in turns, and each pair's ratio is taken, so that
other work on the machine meets both alike. Prints the machine, then a row of medians for each.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cluster.reports.machine import this_machine
from pipeline.recipe import Recipe, parse_recipe
from pipeline.rendering.renderer import Columns
from pipeline.rendering.tasks_on_crops import CropTaskRenderer
from pipeline.rendering.units import STAGES
from pipeline.streaming.connection import let_threads_sleep

FEW, MANY = 1, 2
_WARM = 2

Step = Callable[[], object]


@dataclass(frozen=True)
class Gain:
    """Medians over pairs.

    Args:
        few: seconds on one thread.
        many: seconds on two.
        ratios: median, least and greatest of the seconds on one thread over those on two, pair by pair.
    """

    few: float
    many: float
    ratios: tuple[float, float, float]


def compare(few: Step, many: Step, pairs: int) -> Gain:
    """The time of two ways to do one thing, taken in turns, which of them is first too; the first two turns do not count."""
    took: tuple[list[float], list[float]] = ([], [])
    for turn in range(pairs + _WARM):
        for way in (0, 1) if turn % 2 else (1, 0):
            started = time.perf_counter()
            (few, many)[way]()
            took[way].append(time.perf_counter() - started)
    kept = [seconds[_WARM:] for seconds in took]
    ratios = [one / other for one, other in zip(*kept, strict=True)]
    return Gain(*map(statistics.median, kept), (statistics.median(ratios), min(ratios), max(ratios)))


def recipe_of(batch: int, size: int) -> Recipe:
    """Four tasks, each image all of them, and the network's defaults."""
    return parse_recipe(
        {
            "name": "threads",
            "seed": 0,
            "corpus": {"shards": "unused"},
            "image": {"size": size},
            "engine": "cpu",
            "tasks": {"rotation": {}, "jigsaw": {}, "occlusion": {}, "colorization": {}},
            "training": {"batch": batch, "backbone": {"name": "resnet18"}},
        }
    )


def crops(recipe: Recipe) -> Columns:
    """The columns of a batch of crops, as actors send them."""
    batch, size = recipe.training.batch, recipe.image.size
    return {
        "id": np.arange(batch, dtype=np.uint64),
        "weight": np.ones(batch, np.float32),
        "image": np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8),
        "seconds": np.zeros((batch, 2 * len(STAGES))),
    }


def on_crops(recipe: Recipe, threads: int) -> Step:
    """Makes the tasks of a batch of crops."""
    finish, columns = CropTaskRenderer(recipe, threads), crops(recipe)
    return lambda: finish(dict(columns), 0)


def training_step(recipe: Recipe) -> Callable[[int], Step]:
    """`training_step(recipe)(threads)` makes a step of the network, the update of its weights included."""
    import torch

    from trainers.learning.gradients import accumulate
    from trainers.learning.optim import build_optimizer, place
    from trainers.learning.pretext import PretextModel

    columns = crops(recipe)
    CropTaskRenderer(recipe, MANY)(columns, 0)
    model = place(PretextModel(recipe, recipe.seed), torch.device("cpu"))
    optimizer, _ = build_optimizer(recipe.training.optimizer, model, 1000)

    def on(threads: int) -> Step:
        def step() -> None:
            torch.set_num_threads(threads)
            optimizer.zero_grad(set_to_none=True)
            accumulate(model, recipe.tasks, columns, recipe.training.batch, recipe.training.precision)
            optimizer.step()

        return step

    return on


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=64, help="of the crop, pixels")
    given = parser.parse_args()
    let_threads_sleep()
    recipe, machine = recipe_of(given.batch, given.size), this_machine()
    on = training_step(recipe)
    ways = {
        "tasks on crops": (on_crops(recipe, FEW), on_crops(recipe, MANY)),
        "training step": (on(FEW), on(MANY)),
    }
    print(f"{machine.cpu}, {machine.cores} cores; {machine.system}")
    print(f"batch {given.batch}, {given.size} pixels, {len(recipe.tasks)} tasks, ResNet-18; {given.pairs} pairs in turns")
    print(f"{'':16}{'1 thread':>12}{'2 threads':>12}{'gain':>8}{'least':>8}{'greatest':>10}")
    for name, (few, many) in ways.items():
        gain = compare(few, many, given.pairs)
        print(f"{name:16}{1000 * gain.few:9.1f} ms{1000 * gain.many:9.1f} ms", *(f"{r:7.2f}" for r in gain.ratios))


if __name__ == "__main__":
    main()
