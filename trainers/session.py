"""The connection to Ray: the cluster that the environment names, or one started on this machine for the length of the process."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from pipeline.recipe.schema import Recipe
from trainers.preflight import DATA_TASK_CPUS, check_resources


def connect(recipe: Recipe, check: Callable[[Recipe, float, float], None] = check_resources) -> None:
    """Connect to Ray and check that the recipe's run fits.

    `RAY_ADDRESS` names a cluster; without it a local Ray is started, which gets one logical CPU more than the machine has, for
    Ray Data's own bookkeeping (it computes next to nothing, see `trainers.preflight`).

    Args:
        recipe: the recipe.
        check: refuses what does not fit, see `trainers.preflight`.

    Raises:
        UserError: if the run needs more than the cluster has.
    """
    import ray

    if not ray.is_initialized():
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": bool(os.environ.get("PSEUDOLABEL_DEBUG"))}
        if not os.environ.get("RAY_ADDRESS"):
            # On one machine a look costs nothing, and Ray Train waits for the next one at the start and at the end of each run.
            os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
            options |= {"address": "local", "num_cpus": int((os.cpu_count() or 1) + DATA_TASK_CPUS), "include_dashboard": False}
        ray.init(**options)
    have = ray.cluster_resources()
    check(recipe, have.get("CPU", 0.0), have.get("GPU", 0.0))
