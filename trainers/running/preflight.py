"""Compares what a run needs with what the cluster has, and refuses at once a plan that could never start."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import UserError
from pipeline.labels import Views, number_of_classes
from pipeline.ordering.order import Geometry
from pipeline.recipe.schema import Recipe
from pipeline.shards.corpus import Corpus
from pipeline.streaming.connection import DATA_TASK_CPUS
from pipeline.tasks import Task
from trainers.running.capacity import Node

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Needs:
    """Resources of a run, with the arithmetic behind each sum."""

    cpus: float
    gpus: float
    cpu_words: str
    gpu_words: str


def needs(recipe: Recipe) -> Needs:
    """Sum up the resources of a recipe's training workers, as few as it allows, and of its data actors."""
    train, place = recipe.training, recipe.placement
    actor_gpus = place.gpus if place.render == "workers" else 0.0
    workers = train.least_workers
    return Needs(
        cpus=workers * train.cpus + place.actors * place.cpus + DATA_TASK_CPUS,
        gpus=workers * train.gpus + place.actors * actor_gpus,
        cpu_words=f"{workers} workers x {train.cpus:g} + {place.actors} actors x {place.cpus:g} "
        f"+ {DATA_TASK_CPUS:g} for Ray Data",
        gpu_words=f"{workers} workers x {train.gpus:g} + {place.actors} actors x {actor_gpus:g}",
    )


def check_resources(recipe: Recipe, cpus: float, gpus: float) -> None:
    """Refuse a recipe that asks for more than there is.

    Args:
        recipe: the recipe.
        cpus: logical CPUs of the cluster.
        gpus: GPUs of the cluster.

    Raises:
        UserError: one line, with the arithmetic and what to change.
    """
    _refuse(needs(recipe), cpus, gpus, "training.workers, training.cpus, ", "training.gpus or ")


def check_elastic(recipe: Recipe, nodes: list[Node]) -> None:
    """Refuse a run with a range of workers if these would leave too few CPUs for its data actors.

    Ray Train starts as many workers as the nodes hold, up to the maximum, whatever else has to run there.

    Args:
        recipe: the recipe.
        nodes: those that the cluster has, or may add.

    Raises:
        UserError: one line, with the arithmetic and what to change.
    """
    train, place = recipe.training, recipe.placement
    if not isinstance(train.workers, tuple):
        return
    held = sum(int(min(node.cpus // train.cpus, node.gpus // train.gpus if train.gpus else float("inf"))) for node in nodes)
    workers = max(train.least_workers, min(train.most_workers, held))
    left = sum(node.cpus for node in nodes) - workers * train.cpus
    asked = place.actors * place.cpus + DATA_TASK_CPUS
    if asked > left:
        raise UserError(
            f"{workers} workers, as many as the nodes hold now, leave {left:g} CPUs "
            f"to {place.actors} actors x {place.cpus:g} + {DATA_TASK_CPUS:g} for Ray Data: lower the maximum of "
            "training.workers, or raise training.cpus so that a node holds fewer"
        )


def check_batch(build: Callable[[], nn.Module], sides: Iterable[int], geometry: Geometry, workers: int, key: str) -> None:
    """Refuse a batch that leaves a worker one image a step, if the network's batch normalisation cannot compute with it.

    For one image, a map with one position has one value a channel: minus its mean it is 0 for every image, and torch refuses.

    Args:
        build: makes the network.
        sides: of the network's images in pixels, for tasks whose samples are one image each.
        geometry: how the batch is divided.
        workers: the largest number that share it.
        key: the batch's key in the recipe.

    Raises:
        UserError: one line, with what to change.
    """
    if geometry.lanes // workers * geometry.per_lane > 1:
        return
    import torch

    network = copy.deepcopy(build()).to("meta").train()
    for side in sides:
        try:
            network(torch.empty(1, 3, side, side, device="meta"))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"{key}: a batch of {geometry.batch} over {workers} workers leaves one of them one image a step, and batch "
                f"normalisation needs two where an image of {side} pixels comes down to one position: "
                f"set {key} to {2 * workers} or more, or take fewer workers, larger images, or training.backbone.stem: small"
            ) from None


def check_compared(objectives: Iterable[tuple[str, Any]], batch: int) -> None:
    """Refuse a batch of one where views are learnt: their methods compare samples, or normalise over them, or are watched so.

    Args:
        objectives: names of tasks, and their objectives.
        batch: samples of a step on all ranks.

    Raises:
        UserError: one line, with what to change.
    """
    if compared := [task for task, objective in objectives if batch < 2 and objective.kind is Views]:
        raise UserError(
            f"training.batch: {batch} photo a step, and tasks.{compared[0]} compares those of a batch: set training.batch to 2 "
            "or more; 256 is usual"
        )


def check_accumulate(parts: int, objectives: Iterable[tuple[str, Any]], geometry: Geometry, workers: int) -> None:
    """Refuse to compute a batch in parts where a loss compares samples of the whole batch, or a part would have one sample.

    Args:
        parts: `training.accumulate`.
        objectives: names of tasks, and their objectives.
        geometry: how the batch is divided.
        workers: the largest number that share it.

    Raises:
        UserError: one line, with what to change.
    """
    if parts == 1:
        return
    for task, objective in objectives:
        if objective.needs_whole_batch:
            raise UserError(
                f"training.accumulate: {parts} computes a batch in parts, and the objective of tasks.{task}, {objective.name}, "
                "needs the whole batch: leave training.accumulate out, or take byol or simsiam, which compare no samples"
            )
    if (rows := geometry.lanes // workers * geometry.per_lane) < 2 * parts:
        raise UserError(
            f"training.accumulate: a batch of {geometry.batch} over {workers} workers leaves one of them {rows} samples a step, "
            f"and {parts} parts need {2 * parts}, two each: lower training.accumulate to {max(1, rows // 2)}"
        )


def check_classes(tasks: Mapping[str, Task], corpus: Corpus) -> None:
    """Refuse to learn the images' own classes on a corpus that has none, or another number of them.

    Args:
        tasks: the tasks by name.
        corpus: the corpus that is trained on.

    Raises:
        UserError: one line, with what to change.
    """
    for name, task in tasks.items():
        if not task.learns_classes:
            continue
        if corpus.disagreement:
            raise UserError(f"tasks.{name}: the corpus has no labels that can be learnt: {corpus.disagreement}")
        expected, there = number_of_classes(task.label_kind()), corpus.classes
        if there is not None and len(there) != expected:
            raise UserError(
                f"tasks.{name}.classes: {expected}, and the shards' index names {len(there)} classes: set it to {len(there)}"
            )
        if not any((corpus.labels(int(i)) >= 0).any() for i in np.flatnonzero(corpus.counts)):
            raise UserError(
                f"tasks.{name}: the corpus has no labels: pack it with `--labels folder`, or give samples a `cls` member"
            )


def check_render(recipe: Recipe, cpus: float, gpus: float) -> None:
    """Refuse a render that asks for more than there is; arguments and errors as in `check_resources`."""
    place = recipe.placement
    wanted = Needs(
        cpus=place.actors * place.cpus + DATA_TASK_CPUS,
        gpus=place.actors * place.gpus,
        cpu_words=f"{place.actors} actors x {place.cpus:g} + {DATA_TASK_CPUS:g} for Ray Data",
        gpu_words=f"{place.actors} actors x {place.gpus:g}",
    )
    _refuse(wanted, cpus, gpus)


def _refuse(wanted: Needs, cpus: float, gpus: float, more_cpus: str = "", more_gpus: str = "") -> None:
    if wanted.cpus > cpus:
        raise UserError(
            f"the run needs {wanted.cpus:g} CPUs ({wanted.cpu_words}), the cluster has {cpus:g}: "
            f"lower {more_cpus}placement.actors or placement.cpus, or add nodes"
        )
    if wanted.gpus > gpus:
        raise UserError(
            f"the run needs {wanted.gpus:g} GPUs ({wanted.gpu_words}), the cluster has {gpus:g}: "
            f"lower {more_gpus}placement.gpus, or add nodes"
        )
