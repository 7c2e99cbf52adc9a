"""Trains a recipe in a plain loop without Ray, and leaves what `pretrain` leaves: all the work is this process's."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch

from pipeline.draws import hash64
from pipeline.recipe import Recipe
from pipeline.streaming.batches import batches
from trainers.learning.gradients import accumulate
from trainers.learning.optim import place
from trainers.learning.update import Update
from trainers.pretraining import backbone_file, prepared
from trainers.running.runs import BACKBONE, PRETRAINED, RECIPE, RunFolder

_KEYS = ("loss", "metric", "trivial")


def trained_plainly(
    recipe: Recipe, listeners: list[Callable[[dict[str, Any]], None]] | None = None, steps: int | None = None
) -> dict[str, Any]:
    """Train from the start, without checkpoints.

    Args:
        recipe: the recipe.
        listeners: called after each step.
        steps: how many; if not given, those of the recipe's epochs.
    """
    recipe, source, model = prepared(recipe)
    folder, identity, spec = RunFolder(recipe), RunFolder(recipe).identity("pretrain"), recipe.training
    place(model, "cpu").train()
    schedule, make = source.schedule, source.maker(1, lambda stage, unit: None)
    steps = steps or schedule.steps
    update = Update(model, spec.optimizer, steps, spec.batch)
    found: dict[str, dict[str, Any]] = {name: {"loss": []} for name in recipe.tasks}
    for step, columns in islice(batches(schedule, 0, 0, 1, map(make, range(schedule.units(0)))), steps):
        if not source.image:
            columns.pop("image", None)
        torch.manual_seed(hash64("network", recipe.seed, step, 0))
        update.begin(step)
        outcomes = accumulate(model, recipe.tasks, columns, spec.batch, spec.precision, 1)
        update.finish()
        lines = {name: {key: float(getattr(one, key) / one.count) for key in _KEYS} for name, one in outcomes.items()}
        for name, line in lines.items():
            found[name] = {**line, "loss": [*found[name]["loss"], line["loss"]]}
        where = {"step": step + 1, "steps": steps, "epoch": (step + 1) / schedule.steps_per_epoch, "stage": "pretrain"}
        for listener in listeners or []:
            listener({**where, "lr": 0.0, "samples_per_second": 0.0, "wait_share": 0.0, "quarantined": 0, "tasks": lines})
    folder.make()
    folder.write_weights(BACKBONE, backbone_file(model, recipe, identity))
    folder.write_json(RECIPE, recipe.model_dump(mode="json"))
    folder.write_json("quarantine.json", [])
    outcome = {"steps": steps, "tasks": found, "quarantined": 0}
    folder.write_json(PRETRAINED, {"identity": identity, "recipe_sha256": recipe.digest(), **outcome})
    return outcome
