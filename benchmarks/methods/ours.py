"""Trains a recipe's tasks as a run on one worker does, but in a plain loop without Ray: all its work is this process's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from pipeline.draws import hash64
from pipeline.recipe import Recipe
from pipeline.rendering.units import UnitSource
from pipeline.streaming.batches import batches
from trainers.learning.gradients import accumulate
from trainers.learning.optim import place
from trainers.learning.pretext import PretextModel
from trainers.learning.update import Update
from trainers.networks.backbones import Backbone
from trainers.pretraining import prepared


def stream(source: UnitSource) -> Iterator[dict[str, Any]]:
    """The batches of a source, in the order of a run on one worker."""
    make = source.maker(1, lambda stage, unit: None)
    for _, columns in batches(source.schedule, 0, 0, 1, map(make, range(source.schedule.units(0)))):
        if not source.image:
            columns.pop("image", None)
        yield columns


def training(recipe: Recipe, steps: int) -> Iterator[Backbone]:
    """Train for so many steps; yields the backbone before the first and after each."""
    return (model.backbone for model in learning(recipe, steps))


def learning(recipe: Recipe, steps: int) -> Iterator[PretextModel]:
    """The same with the heads of the tasks."""
    recipe, source, model = prepared(recipe)
    spec = recipe.training
    place(model, "cpu").train()
    update = Update(model, spec.optimizer, steps, spec.batch)
    yield model
    for step, columns in zip(range(steps), stream(source)):
        torch.manual_seed(hash64("network", recipe.seed, step, 0))
        update.begin(step)
        accumulate(model, recipe.tasks, columns, spec.batch, spec.precision, spec.accumulate)
        update.finish()
        yield model
