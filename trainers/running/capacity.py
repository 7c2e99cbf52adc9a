"""The live cluster: what its nodes hold, what its autoscaler may add, and whether a plan fits them node by node."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.recipe.schema import Recipe
from pipeline.streaming.connection import local_cpus

_MOST_TO_COME = 1000
"""The most nodes of one kind that are counted, where the autoscaler's limit is higher or absent."""

_WINDOWS = 3
"""Windows of units that are in the object store at once: one is trained on, one waits, one is being rendered."""

_ROUNDING = 1e-6  # tenths of a CPU do not add up exactly


@dataclass(frozen=True)
class Node:
    """Resources of a node: logical CPUs, GPUs, bytes of its object store, and bytes of memory with it; 0 where unknown."""

    cpus: float
    gpus: float = 0.0
    store: float = 0.0
    memory: float = 0.0


@dataclass(frozen=True)
class Piece:
    """A worker or actor, which must find its resources on one node; `key` is the section of the recipe that sizes it."""

    name: str
    key: str
    cpus: float
    gpus: float


def nodes() -> list[Node]:
    """The cluster's nodes, and those that its autoscaler may start."""
    import ray
    from ray._private.state import state

    available = [_node(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    config = state.get_cluster_config()  # Ray Data asks it, too; None where nothing scales
    for group in config.node_group_configs if config else ():
        held = dict(group.resources)
        running = sum(node.cpus == held.get("CPU", 0) and node.gpus == held.get("GPU", 0) for node in available)
        most = _MOST_TO_COME if group.max_count < 0 else min(group.max_count, _MOST_TO_COME)
        available += [Node(held.get("CPU", 0), held.get("GPU", 0))] * max(0, most - running)
    return available


def _node(held: Mapping[str, float]) -> Node:
    store, memory = held.get("object_store_memory", 0.0), held.get("memory", 0.0)
    return Node(held.get("CPU", 0.0), held.get("GPU", 0.0), store, memory + store if memory else 0.0)


def this_node() -> Node:
    """The resources that Ray would have if it were started on this machine; it is not started."""
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    assert manager is not None
    visible = manager.get_current_process_visible_accelerator_ids()
    gpus = manager.get_current_node_num_accelerators()
    return Node(local_cpus(), gpus if visible is None else min(gpus, len(visible)))


def pieces(recipe: Recipe, trains: bool) -> list[Piece]:
    """The workers and actors that a run starts; no training workers if it only renders."""
    train, place = recipe.training, recipe.placement
    gpus = place.gpus if place.render == "workers" or not trains else 0.0
    workers = [Piece("training worker", "training", train.cpus, train.gpus)] * train.least_workers if trains else []
    return workers + [Piece("actor", "placement", place.cpus, gpus)] * place.actors


def check_nodes(wanted: list[Piece], available: list[Node]) -> None:
    """Refuse a run whose workers and actors do not fit node by node: each needs its resources on one node.

    They are placed one after another, the largest first, each on the first node that has room, as Ray itself does.

    Raises:
        UserError: names the first that does not fit, the sizes of the nodes, and what to change.
    """
    free = [[node.cpus, node.gpus] for node in available]
    for number, piece in enumerate(sorted(wanted, key=lambda one: (-one.gpus, -one.cpus))):
        for node in sorted(free, key=lambda left: left[1]) if not piece.gpus else free:  # GPUs are left to those that need them
            if node[0] + _ROUNDING >= piece.cpus and node[1] + _ROUNDING >= piece.gpus:
                node[0] -= piece.cpus
                node[1] -= piece.gpus
                break
        else:
            asks = f"{piece.cpus:g} CPUs" + (f" and {piece.gpus:g} GPUs" if piece.gpus else "")
            sizes = f"the nodes have {_sizes(available)}"
            if not any(node.cpus >= piece.cpus and node.gpus >= piece.gpus for node in available):
                raise UserError(
                    f"a {piece.name} needs {asks} on one node, and {sizes}: "
                    f"lower {piece.key}.cpus{f' or {piece.key}.gpus' if piece.gpus else ''}, or add larger nodes"
                )
            raise UserError(
                f"the run fits the cluster in sum but not node by node: with {number} of its {len(wanted)} parts placed, no node "
                f"has {asks} left for a {piece.name}; {sizes}: choose training.cpus and placement.cpus that divide a node "
                "evenly, or add nodes"
            )


def advice(recipe: Recipe, trains: bool, wanted: list[Piece], available: list[Node], free: dict[str, float]) -> list[str]:
    """Warnings of what delays or slows a run: resources that others hold now, and an object store too small for the plan.

    Args:
        recipe: the recipe.
        trains: whether it trains.
        wanted: see `pieces`.
        available: see `nodes`.
        free: `CPU` and `GPU` that are free now.
    """
    found = []
    for name, needed, total in (
        ("CPU", sum(piece.cpus for piece in wanted), sum(node.cpus for node in available)),
        ("GPU", sum(piece.gpus for piece in wanted), sum(node.gpus for node in available)),
    ):
        if needed > free.get(name, 0.0):
            found.append(
                f"the run needs {needed:g} {name}s, and {free.get(name, 0.0):g} of {total:g} are free now: it waits until others "
                "end or nodes are added"
            )
    store = sum(node.store for node in available)
    if trains and recipe.placement.render == "workers":
        from pipeline.ordering.order import Geometry
        from pipeline.rendering.units import row_bytes

        geometry = Geometry.of(recipe.training.order, recipe.training.batch, row_bytes(recipe))
        window = geometry.batch * geometry.window * row_bytes(recipe)
        if _WINDOWS * window > store:
            found.append(
                f"the object store has {store / 2**20:,.0f} MiB and the plan needs {_WINDOWS} windows of "
                f"{window / 2**20:,.0f} MiB ({geometry.batch} samples x {geometry.window} steps): Ray spills to "
                "disk, which is slow; give Ray more (--object-store-memory, or a larger /dev/shm), lower "
                "training.order.window, or set placement.render to trainer"
            )
    return found


def check_cluster(recipe: Recipe, trains: bool, available: list[Node]) -> None:
    """Check a run against the live cluster, and print warnings to stderr.

    Raises:
        UserError: it does not fit.
    """
    import ray

    wanted = pieces(recipe, trains)
    check_nodes(wanted, available)
    for words in advice(recipe, trains, wanted, available, ray.available_resources()):
        print(f"warning: {words}", file=sys.stderr)


def _sizes(available: list[Node]) -> str:
    """The most frequent kinds of nodes, in words."""
    kinds: dict[str, int] = {}
    for node in available:
        words = f"{node.cpus:g} CPUs" + (f" and {node.gpus:g} GPUs" if node.gpus else "")
        kinds[words] = kinds.get(words, 0) + 1
    return ", ".join(f"{count} x {words}" for words, count in sorted(kinds.items(), key=lambda kind: -kind[1])[:4])
