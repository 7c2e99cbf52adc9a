"""The number of threads of a CPU worker's network: what data actors leave of this machine, or on a cluster the worker's CPUs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from pipeline.recipe.schema import Recipe
from pipeline.streaming.connection import cluster_address, local_cpus

_BUSY = 0.9


def network_threads(recipe: Recipe) -> int:
    """The number of threads of each training worker's network.

    `training.threads` if the recipe sets it. Else `training.cpus`, rounded up, on a cluster or if the recipe sets it. Else, on
    this machine, `OMP_NUM_THREADS`, or what the data actors leave of Ray's CPUs. Ray has one CPU more than there are cores, so
    the network shares a core with one actor, which is mostly idle where the network is the limit.
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
    """Advice to set `training.threads`, if a run on this machine spent its time in a network with fewer threads than cores.

    Args:
        recipe: the recipe of the run.
        stages: of `trainers.learning.loop.summary`.
    """
    threads, available = network_threads(recipe) * recipe.training.most_workers, cores()
    step = 1 - stages["wait"] / stages["total"] if stages["total"] else 0.0
    if cluster_address() is not None or recipe.training.gpus or step <= _BUSY or threads >= available:
        return None
    each = available // recipe.training.most_workers
    return f"training computed for {step:.0%} of its time, on {threads} of {available} cores: try training.threads={each}"
