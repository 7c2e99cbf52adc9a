"""Connects a run to Ray: checks that it fits the cluster, and that no other process does the same work."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.errors import UnderWay, UserError
from pipeline.recipe.schema import Recipe
from pipeline.streaming.connection import cluster_address, connect_ray
from trainers.networks.backbones import check_backbone
from trainers.running.capacity import Node, check_cluster, nodes, this_node
from trainers.running.preflight import check_elastic, check_resources

_NAMESPACE = "pseudolabel"

Check = Callable[[Recipe, float, float], None]


def check_early(recipe: Recipe, check: Check = check_resources) -> None:
    """Refuse, before Ray is started, a network that cannot be built or a run that needs more than this machine has.

    Arguments and errors as of `connect`.
    """
    import ray

    if check is check_resources:
        check_backbone(recipe.training.backbone, recipe.image.size)
        if recipe.training.workers == 0 and recipe.training.gpus > this_node().gpus:
            raise UserError(
                f"training.gpus is {recipe.training.gpus:g}, training.workers: 0 trains in this process, and this machine has "
                f"{this_node().gpus:g} GPUs: leave training.gpus out"
            )
    if cluster_address() is None and not ray.is_initialized():
        _check_fit(recipe, check, [this_node()])


def connect(recipe: Recipe, check: Check = check_resources) -> None:
    """Connect to Ray, as `pipeline.streaming.connection` says, and check that the recipe's run fits.

    Args:
        recipe: the recipe.
        check: refuses what does not fit, see `trainers.running.preflight`.

    Raises:
        UserError: if the run needs more than the cluster has, or no cluster answers.
    """
    check_early(recipe, check)
    connect_ray()
    available = nodes()
    _check_fit(recipe, check, available)
    check_cluster(recipe, check is check_resources, available)


def _check_fit(recipe: Recipe, check: Check, available: list[Node]) -> None:
    check(recipe, sum(node.cpus for node in available), sum(node.gpus for node in available))
    if check is check_resources:
        check_elastic(recipe, available)


@contextmanager
def exclusive(work: str) -> Iterator[None]:
    """While the block runs, no other process of the cluster can do the same work.

    It holds the name of a Ray actor, which only one process can have; Ray frees the name however that process ends.

    Args:
        work: the command, and where its results go.

    Raises:
        UnderWay: another process is doing this work.
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
        if ray.is_initialized():  # an interrupted command has disconnected already, which frees the name
            ray.kill(holder)


class _Holder:
    """An actor that only holds a name."""
