"""What a run needs against what the cluster has: a plan that cannot start is refused at once, and does not wait for ever."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.recipe.schema import Recipe

DATA_TASK_CPUS = 1.0
"""Ray Data needs one free logical CPU for the task that numbers the units; without it the rendering actors wait for ever."""


@dataclass(frozen=True)
class Needs:
    """Resources of a run, with the arithmetic behind each sum."""

    cpus: float
    gpus: float
    cpu_words: str
    gpu_words: str


def needs(recipe: Recipe) -> Needs:
    """Sum up the training workers and the data actors of a recipe."""
    train, place = recipe.training, recipe.placement
    actor_gpus = place.gpus if place.render == "workers" else 0.0
    return Needs(
        cpus=train.workers * train.cpus + place.actors * place.cpus + DATA_TASK_CPUS,
        gpus=train.workers * train.gpus + place.actors * actor_gpus,
        cpu_words=f"{train.workers} workers x {train.cpus:g} + {place.actors} actors x {place.cpus:g} "
        f"+ {DATA_TASK_CPUS:g} for Ray Data",
        gpu_words=f"{train.workers} workers x {train.gpus:g} + {place.actors} actors x {actor_gpus:g}",
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
