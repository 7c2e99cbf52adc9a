"""How many threads the network of a CPU worker computes with: what the plan leaves of this machine, or on a cluster its CPUs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from pipeline.recipe.schema import Recipe
from pipeline.streaming.connection import cluster_address, local_cpus

_BUSY = 0.9


def network_threads(recipe: Recipe) -> int:
    """The threads of each training worker's network.

    `training.threads` where the recipe has it. Else `training.cpus`, rounded up, on a cluster and where the recipe says how many;
    else, on this machine, `OMP_NUM_THREADS`, or what the data actors leave of Ray's CPUs. These are one more than the cores, so
    that the network has the cores of all actors but one, which it shares: where the network limits, that one is mostly idle.
    """
    spec, place = recipe.training, recipe.placement
    if spec.threads is not None:
        return spec.threads
    asked = math.ceil(spec.cpus)
    if cluster_address() is not None or "cpus" in spec.model_fields_set:
        return asked
    if given := os.environ.get("OMP_NUM_THREADS", ""):
        return int(given) if given.isdigit() and int(given) else asked
    left = min(cores(), int(local_cpus() - place.actors * place.cpus))
    return max(asked, left // spec.most_workers)


def cores() -> int:
    """Logical cores that this process may use: by its affinity, and by the limit of its container."""
    from ray._private.utils import get_num_cpus

    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(min(mine, get_num_cpus(override_docker_cpu_warning=True)))


def thread_advice(recipe: Recipe, stages: Mapping[str, Any]) -> str | None:
    """A line where a run on this machine spent its time in a network that had fewer threads than there are cores.

    Args:
        recipe: the run's.
        stages: of `trainers.learning.loop.summary`.
    """
    threads, there = network_threads(recipe) * recipe.training.most_workers, cores()
    step = 1 - stages["wait"] / stages["total"] if stages["total"] else 0.0
    if cluster_address() is not None or recipe.training.gpus or step <= _BUSY or threads >= there:
        return None
    each = there // recipe.training.most_workers
    return f"training computed for {step:.0%} of its time, on {threads} of {there} cores: try training.threads={each}"
