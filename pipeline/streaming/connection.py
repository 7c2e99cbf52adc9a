"""Connects to Ray: to the cluster that `RAY_ADDRESS` names, or to a local Ray that runs as long as this process."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading

from pipeline.errors import UserError
from pipeline.processes.home import check_workers, worker_options

DATA_TASK_CPUS = 1.0
"""Ray Data needs one free logical CPU for the task that numbers the units; without it the rendering actors wait for ever."""

_ONLY_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's own switch for machines that are no clusters: set to 0, its processes listen on the loopback address and nowhere else."""

_DEBUG = "PSEUDOLABEL_DEBUG"
_CONNECT_SECONDS = 5.0
_STARTUPS = 6  # processes of Ray that may start at the same time, at least
_LONGEST_SOCKET = 107  # bytes of a Unix socket's path, at most
_SOCKET = "/ray/session_2026-01-02_03-04-05_678901_2345678/sockets/plasma_store.12"
_SHORT = "/tmp"


def connect_ray() -> None:
    """Connect to Ray, if this process is not connected yet.

    `RAY_ADDRESS` names a cluster; without it a local Ray is started, which gets one logical CPU more than the machine has, for
    Ray Data's own bookkeeping (it computes next to nothing).

    Raises:
        UserError: no cluster answers at that address, no folder has a path short enough for the local Ray's sockets, or the
        caller started Ray, and its workers would import other modules under our names.
    """
    address = cluster_address()
    if address is None:
        os.environ.setdefault(_ONLY_LOOPBACK, "0")  # before Ray is imported
    import ray

    if ray.is_initialized():
        check_workers(ray.get_runtime_context().runtime_env)
        return
    log_to_driver = bool(os.environ.get(_DEBUG))
    if address is not None:
        join_cluster(address, log_to_driver)
    else:
        _start_ray(log_to_driver)
    quiet_console()
    _keep_sigterm()


def quiet_console() -> None:
    """Keep Ray's lines of information off the console; warnings, errors and Ray's own log files stay as they are."""
    if os.environ.get(_DEBUG):
        return
    for name in ("ray", "ray.data"):
        for handler in logging.getLogger(name).handlers:
            if type(handler).__name__ == "PlainRayHandler":
                handler.setLevel(max(handler.level, logging.WARNING))


def quiet_data() -> None:
    """Do the same for Ray Data once it is imported, unless the caller connected to Ray and asked for lines of information."""
    if logging.getLogger("ray").level > logging.INFO:
        quiet_console()


def cluster_address() -> str | None:
    """The address of the cluster to connect to, from `RAY_ADDRESS`; None where Ray is to be started on this machine."""
    return os.environ.get("RAY_ADDRESS") or None


def let_threads_sleep() -> None:
    """Make a network's threads sleep while they wait for each other; call this before torch is loaded. Children inherit it.

    By OpenMP's default they spin. Where another process uses one of the cores, a spinning thread takes the core of the thread
    that it waits for, and two threads are many times slower than one.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def local_cpus() -> int:
    """Logical CPUs of a Ray that is started on this machine."""
    return int((os.cpu_count() or 1) + DATA_TASK_CPUS)


def join_cluster(address: str, log_to_driver: bool = False) -> None:
    """Connect to the cluster at an address, or give up after some seconds if nothing answers (Ray itself tries for minutes).

    Raises:
        UserError: no cluster answers there.
    """
    _check_answers(address)
    import ray

    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=log_to_driver, **worker_options())
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _unreachable(address, f"refuses: {str(error).strip().splitlines()[0]}") from error


def _check_answers(address: str) -> None:
    place = address
    if "://" not in address:
        from ray._private import services

        try:
            place = services.canonicalize_bootstrap_address(address) or address  # its own address for `auto` and `localhost`
        except ConnectionError:
            raise _unreachable(address, "cannot be found: no Ray runs on this machine") from None
        except ValueError as error:
            raise _unreachable(address, f"has no address that Ray can read: {error}") from None
    host, _, port = place.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():  # else Ray says what is wrong with it
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            where = "" if place == address else f" at {place}"
            raise _unreachable(address, f"cannot be reached{where}: {getattr(error, 'strerror', None) or error}") from None


def _unreachable(address: str, words: str) -> UserError:
    return UserError(
        f"the cluster {address} (RAY_ADDRESS) {words}. Start it, correct the address, or unset RAY_ADDRESS: then Ray is started "
        "on this machine"
    )


def _start_ray(log_to_driver: bool) -> None:
    import ray
    from ray._private import ray_constants

    let_threads_sleep()
    # Ray lowers the priority of all its workers alike; we lower that of data actors below that of training workers.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # On one machine a health check costs nothing, and Ray Train waits for the next one at the start and end of each run.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # Ray warns of more processes than this by four; on few cores its own helpers alone are as many.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(max(_STARTUPS, local_cpus())))
    ray_constants.ENABLE_RAY_CLUSTER = False  # for a Ray that was imported before the variable was set
    options = worker_options() | ({"_temp_dir": folder} if (folder := _short_folder()) else {})
    ray.init(
        "local",
        num_cpus=local_cpus(),
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=log_to_driver,
        **options,
    )


def _short_folder() -> str | None:
    """A folder for Ray's files where the path of Ray's own choice is too long for its sockets; None where it is not.

    Raises:
        UserError: no such folder can be written.
    """
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    folder = os.environ.get(name, "")
    if len(os.fsencode(folder + _SOCKET)) <= _LONGEST_SOCKET:
        return None
    most = _LONGEST_SOCKET - len(_SOCKET)
    why = f"{name} is {len(os.fsencode(folder))} bytes long, and Ray's sockets leave room for {most}"
    if not os.access(_SHORT, os.W_OK | os.X_OK):
        raise UserError(f"{why}: set RAY_TMPDIR to a folder with a shorter path")
    print(f"warning: {why}: Ray keeps its files in {_SHORT}/ray; RAY_TMPDIR names another place", file=sys.stderr)
    return f"{_SHORT}/ray"


def _keep_sigterm() -> None:
    """Restore Python's own handler of SIGTERM.

    Ray installs one in its place that prints a stack, and that ends the process by SIGABRT after three seconds, in the middle of
    its clean-up (Abseil's failure signal handler, `alarm_on_failure_secs`).
    """
    handler = signal.getsignal(signal.SIGTERM)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
