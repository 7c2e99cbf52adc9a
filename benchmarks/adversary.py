"""Measures what a step costs with a discriminator, beside the same task without one, in processor time.

    python -m benchmarks.adversary [--task super_resolution] [--size 64] [--batch 32] [--backbone resnet18] [--steps 20]

All learn the same random pixels, on one thread, in turn, round after round. Each row: milliseconds a photo (the median of the
rounds), and how many times the plain objective's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch

from pipeline.draws import Draws
from pipeline.engines import pixel_shapes
from pipeline.recipe import parse_recipe
from trainers.learning.gradients import accumulate
from trainers.learning.optim import place
from trainers.learning.pretext import PretextModel
from trainers.learning.update import Update

STEPS = 1 << 20  # of the whole run, of which a few are measured

CASES: dict[str, Any] = {
    "`pixels`": "pixels",
    "`adversarial`, pixels alone": {"name": "adversarial", "start": 0.9},
    "`adversarial`, hinge": {"name": "adversarial", "start": 0},
    "`adversarial`, least_squares": {"name": "adversarial", "start": 0, "kind": "least_squares"},
    "`adversarial`, wasserstein": {"name": "adversarial", "start": 0, "kind": "wasserstein"},
    "`adversarial`, hinge, width 32": {"name": "adversarial", "start": 0, "width": 32},
    "`adversarial`, hinge, detail 4": {"name": "adversarial", "start": 0, "detail": 4},
}


class Case:
    """A network that learns one batch, step after step."""

    def __init__(self, objective: Any, task: str, size: int, batch: int, backbone: str) -> None:
        document = {
            "name": "adversary",
            "seed": 0,
            "corpus": {"shards": "-"},
            "image": {"size": size},
            "tasks": {task: {"objective": objective}},
            "training": {"backbone": {"name": backbone, "stem": "standard"}},
        }
        self.recipe, self.task, self.batch = parse_recipe(document), task, batch
        self.model = place(PretextModel(self.recipe, 0), "cpu").train()
        self.update = Update(self.model, self.recipe.training.optimizer, STEPS, batch)
        rng, ids = np.random.default_rng(0), np.arange(batch, dtype=np.uint64)
        shapes = {"image": (size, size, 3), **pixel_shapes(self.recipe.tasks, size)}
        drawn = self.recipe.tasks[task].draw(Draws(0, 0, ids).stream(task), size)
        self.columns = {
            "id": ids,
            "weight": np.ones(batch, np.float32),
            **{name: rng.integers(0, 256, (batch, *shape), np.uint8) for name, shape in shapes.items()},
            **{f"{task}.{key}": drawn[key] for key in ("mask",) if key in drawn},
        }

    def steps(self, first: int, count: int) -> float:
        """Train some steps; milliseconds of processor time a photo."""
        started = time.process_time()
        for step in range(first, first + count):
            self.update.begin(step)
            accumulate(self.model, [self.task], self.columns, self.batch, "auto")
            self.update.finish()
        return 1000 * (time.process_time() - started) / (count * self.batch)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="super_resolution")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--steps", type=int, default=20, help="of each, in five rounds")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cases = {name: Case(one, given.task, given.size, given.batch, given.backbone) for name, one in CASES.items()}
    taken: dict[str, list[float]] = {name: [] for name in cases}
    each = max(1, given.steps // 5)
    for case in cases.values():
        case.steps(0, 2)
    for i in range(5):
        for name, case in cases.items():
            taken[name].append(case.steps(2 + i * each, each))
    plain = statistics.median(next(iter(taken.values())))
    print("| objective | ms a photo | times |\n| --- | ---: | ---: |")
    for name, values in taken.items():
        print(f"| {name} | {statistics.median(values):.2f} | {statistics.median(values) / plain:.2f} |")


if __name__ == "__main__":
    main()
