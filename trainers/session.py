"""A run's place on Ray: it fits what the cluster has, and no other process is at the same work."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from pipeline.connection import connect_ray
from pipeline.errors import UnderWay
from pipeline.recipe.schema import Recipe
from trainers.capacity import look_over, nodes
from trainers.preflight import check_resources, check_room

_NAMESPACE = "pseudolabel"
_held: dict[str, Any] = {}


def connect(recipe: Recipe, check: Callable[[Recipe, float, float], None] = check_resources, work: str | None = None) -> None:
    """Connect to Ray, as `pipeline.connection` says, and check that the recipe's run fits.

    Args:
        recipe: the recipe.
        check: refuses what does not fit, see `trainers.preflight`.
        work: what is going to be done, and where it goes: no two processes of a cluster do the same at once.

    Raises:
        UserError: if the run needs more than the cluster has.
        UnderWay: another process of the cluster is at this work.
    """
    connect_ray()
    there = nodes()
    check(recipe, sum(node.cpus for node in there), sum(node.gpus for node in there))
    if check is check_resources:
        check_room(recipe, there)
    look_over(recipe, check is check_resources, there)
    if work:
        _hold(work)


def _hold(work: str) -> None:
    """Make this process the one on the cluster that does this work, until it ends.

    Ray gives the name of an actor to one process only, and takes it back when that process is gone, however it went.
    """
    import ray

    name = hashlib.sha256(work.encode()).hexdigest()
    try:
        _held[name] = ray.remote(num_cpus=0)(_Holder).options(name=name, namespace=_NAMESPACE).remote()
    except ValueError:
        if name not in _held:
            raise UnderWay(
                f"{work} is under way on this cluster already: wait for it, or stop it; `pseudolabel list` shows the jobs"
            ) from None


class _Holder:
    """Does nothing but have a name."""
