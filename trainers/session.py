"""The connection to Ray: the cluster that the environment names, or one started on this machine for the length of the process."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from pipeline.errors import UnderWay
from pipeline.recipe.schema import Recipe
from trainers.capacity import look_over, nodes
from trainers.preflight import DATA_TASK_CPUS, check_resources, check_room

_ONLY_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's own switch for machines that are no clusters: set to 0, its processes listen on the loopback address and nowhere else."""

_NAMESPACE = "pseudolabel"
_held: dict[str, Any] = {}


def connect(recipe: Recipe, check: Callable[[Recipe, float, float], None] = check_resources, work: str | None = None) -> None:
    """Connect to Ray and check that the recipe's run fits.

    `RAY_ADDRESS` names a cluster; without it a local Ray is started, which gets one logical CPU more than the machine has, for
    Ray Data's own bookkeeping (it computes next to nothing, see `trainers.preflight`).

    Args:
        recipe: the recipe.
        check: refuses what does not fit, see `trainers.preflight`.
        work: what is going to be done, and where it goes: no two processes of a cluster do the same at once.

    Raises:
        UserError: if the run needs more than the cluster has.
        UnderWay: another process of the cluster is at this work.
    """
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault(_ONLY_LOOPBACK, "0")  # before Ray is imported
    import ray

    if not ray.is_initialized():
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": bool(os.environ.get("PSEUDOLABEL_DEBUG"))}
        if not os.environ.get("RAY_ADDRESS"):
            from ray._private import ray_constants

            # On one machine a look costs nothing, and Ray Train waits for the next one at the start and at the end of each run.
            os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
            ray_constants.ENABLE_RAY_CLUSTER = False  # where Ray was imported before
            options |= {"address": "local", "num_cpus": int((os.cpu_count() or 1) + DATA_TASK_CPUS), "include_dashboard": False}
        ray.init(**options)
        _keep_sigterm()
    there = nodes()
    check(recipe, sum(node.cpus for node in there), sum(node.gpus for node in there))
    if check is check_resources:
        check_room(recipe, there)
    look_over(recipe, check is check_resources, there)
    if work:
        _hold(work)


def _keep_sigterm() -> None:
    """Give Python's own handler of SIGTERM its place again.

    Ray puts one before it that prints a stack and ends the process by SIGABRT if it is not gone after three seconds, in the midst
    of what it has to tidy up (Abseil's failure signal handler, `alarm_on_failure_secs`).
    """
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


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
