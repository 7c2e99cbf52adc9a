"""A run's place on Ray: it fits what the cluster has, and no other process is at the same work."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.connection import connect_ray
from pipeline.errors import UnderWay
from pipeline.recipe.schema import Recipe
from trainers.capacity import look_over, nodes
from trainers.preflight import check_resources, check_room

_NAMESPACE = "pseudolabel"


def connect(recipe: Recipe, check: Callable[[Recipe, float, float], None] = check_resources) -> None:
    """Connect to Ray, as `pipeline.connection` says, and check that the recipe's run fits.

    Args:
        recipe: the recipe.
        check: refuses what does not fit, see `trainers.preflight`.

    Raises:
        UserError: if the run needs more than the cluster has.
    """
    connect_ray()
    there = nodes()
    check(recipe, sum(node.cpus for node in there), sum(node.gpus for node in there))
    if check is check_resources:
        check_room(recipe, there)
    look_over(recipe, check is check_resources, there)


@contextmanager
def alone(work: str) -> Iterator[None]:
    """While this lasts no other process of the cluster can do the same.

    Ray gives the name of an actor to one process only, and takes it back when that process is gone, however it went.

    Args:
        work: what is being done, and where it goes.

    Raises:
        UnderWay: somebody is at this work.
    """
    import ray

    name = hashlib.sha256(work.encode()).hexdigest()
    try:
        holder: Any = ray.remote(num_cpus=0)(_Holder).options(name=name, namespace=_NAMESPACE).remote()
    except ValueError:
        raise UnderWay(
            f"{work} is under way on this cluster already: wait for it, or stop it; `pseudolabel list` shows the jobs"
        ) from None
    try:
        yield
    finally:
        if ray.is_initialized():  # an interrupted command has let go of Ray, and so of the name, already
            ray.kill(holder)


class _Holder:
    """Does nothing but have a name."""
