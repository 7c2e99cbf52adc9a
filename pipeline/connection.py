"""The connection to Ray: the cluster that the environment names, or one started on this machine for the length of the process."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

from pipeline.home import check_workers, worker_options

DATA_TASK_CPUS = 1.0
"""Ray Data needs one free logical CPU for the task that numbers the units; without it the rendering actors wait for ever."""

_ONLY_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's own switch for machines that are no clusters: set to 0, its processes listen on the loopback address and nowhere else."""


def connect_ray() -> None:
    """Connect to Ray, if this process is not connected yet.

    `RAY_ADDRESS` names a cluster; without it a local Ray is started, which gets one logical CPU more than the machine has, for
    Ray Data's own bookkeeping (it computes next to nothing).

    Raises:
        UserError: the caller's own Ray has workers that would import something else under our names.
    """
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault(_ONLY_LOOPBACK, "0")  # before Ray is imported
    import ray

    if ray.is_initialized():
        check_workers(ray.get_runtime_context().runtime_env)
        return
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": bool(os.environ.get("PSEUDOLABEL_DEBUG"))}
    if not os.environ.get("RAY_ADDRESS"):
        from ray._private import ray_constants

        # On one machine a look costs nothing, and Ray Train waits for the next one at the start and at the end of each run.
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        ray_constants.ENABLE_RAY_CLUSTER = False  # where Ray was imported before
        options |= {"address": "local", "num_cpus": int((os.cpu_count() or 1) + DATA_TASK_CPUS), "include_dashboard": False}
    ray.init(**options, **worker_options())
    _keep_sigterm()


def _keep_sigterm() -> None:
    """Give Python's own handler of SIGTERM its place again.

    Ray puts one before it that prints a stack and ends the process by SIGABRT if it is not gone after three seconds, in the midst
    of what it has to tidy up (Abseil's failure signal handler, `alarm_on_failure_secs`).
    """
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
