"""What runs trained, from their ledgers, and what they should have trained, from the order."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from pipeline.ordering.order import Geometry, Schedule
from pipeline.recipe import Recipe
from pipeline.rendering.units import UnitSource, row_bytes
from pipeline.shards.opening import open_training_corpus
from trainers.running.runs import RunFolder

Steps = dict[int, Counter[int]]


def trained(recipe: Recipe) -> Steps:
    """The ids that each step trained, over all ranks and over all times that it was trained.

    A step may lie in several files, of several starts; the fullest count is taken of each id, so a start that trained other
    samples shows as ids too many.
    """
    starts: dict[str, Steps] = {}
    for file in Path(RunFolder(recipe).path("samples")).glob("pretrain/*.jsonl"):
        start, _, world = file.stem.partition("-rank-")
        steps = starts.setdefault(f"{start} of {world.partition('-of-')[2]}", {})
        for line in file.read_text().splitlines():
            if line.endswith("}"):  # else its writer was killed over it
                entry = json.loads(line)
                steps.setdefault(entry["step"], Counter()).update(entry["ids"])
    found: Steps = {}
    for steps in starts.values():
        for step, ids in steps.items():
            found[step] = found.get(step, Counter()) | ids
    return found


def due(recipe: Recipe) -> Steps:
    """The ids that each step should train, worked out here from counts, recipe and seed."""
    spec, corpus = recipe.training, open_training_corpus(recipe.corpus, seed=recipe.seed)
    geometry = Geometry.of(spec.order, spec.batch, row_bytes(recipe))
    schedule = Schedule(corpus.counts, geometry, recipe.seed, spec.epochs, spec.order.tail, portions=corpus.portions)
    source, steps = UnitSource(recipe, corpus, schedule), {}
    for window, numbers in enumerate(schedule.windows()):
        for group in range(geometry.groups):
            ids = [sample.id for sample in source.read(window * geometry.groups + group).samples]
            for i, step in enumerate(numbers):
                rows = ids[i * geometry.unit_rows :][: geometry.unit_rows]
                steps.setdefault(step, Counter()).update(rows)
    return steps
