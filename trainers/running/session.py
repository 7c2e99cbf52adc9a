"""Connects a run to Ray, and checks that it fits the cluster."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.errors import UserError
from pipeline.recipe.schema import Recipe
from pipeline.streaming.connection import cluster_address, connect_ray
from trainers.running.capacity import Node, check_cluster, nodes, this_node
from trainers.running.preflight import check_elastic, check_resources

Check = Callable[[Recipe, float, float], None]


def check_early(recipe: Recipe, check: Check = check_resources) -> None:
    """Refuse, before Ray is started, a network that cannot be built or a run that needs more than this machine has.

    Arguments and errors as of `connect`.
    """
    import ray

    if check is check_resources:
        from trainers.networks.backbones import check_backbone  # not at the top: torch and torchvision take three seconds

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
