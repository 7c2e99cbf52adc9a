"""One Ray for the whole test session, and the means to kill its workers as a failing machine would."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

CPUS = 6
_WAIT_SECONDS = 240.0
QUICK = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # else each run starts a process that watches for the end of a cloud machine
    "RAY_worker_niceness": "0",  # else Ray's workers have lower priority than everything else on the machine
    "RAY_prestart_worker_first_driver": "0",  # else a process a CPU starts at once, needed or not
}
"""Environment in which a Ray for tests starts, and runs of Ray Train on it."""


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A local Ray with more logical CPUs than the machine has: tests prove behaviour, not speed."""
    import ray
    from ray._private import ray_constants

    os.environ |= {**QUICK, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # loopback only, as a Ray of `connect_ray`
    ray_constants.ENABLE_RAY_CLUSTER = False  # for tests have imported it
    ray.init(
        "local",
        num_cpus=CPUS,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        object_store_memory=500 * 2**20,
        _system_config={"metrics_report_interval_ms": 2000},
    )
    yield
    ray.shutdown()


def kill_worker(name: str, but: set[int]) -> int:
    """SIGKILL the first Ray worker process of this session whose title contains `name`, none of `but`; returns its pid."""
    found = [process for process in workers(name) if process.pid not in but]
    if not found:
        raise LookupError(f"no Ray worker process with {name!r} in its title, only {sorted(map(_title, workers()))}")
    found[0].kill()
    return found[0].pid


def wait_for_another(name: str, but: set[int]) -> None:
    """Wait until there is a Ray worker of that name, none of `but`, that has begun its work."""
    end = time.monotonic() + _WAIT_SECONDS
    while not [p for p in workers(name) if p.pid not in but and "__init__" not in _title(p)]:
        if time.monotonic() > end:
            raise TimeoutError(f"nothing took the place of {name} {but}")
        time.sleep(0.1)


def workers(name: str = "") -> list[psutil.Process]:
    """Ray worker processes that descend from this one and have `name` in their titles, by their ids."""
    below = psutil.Process().children(recursive=True)
    return sorted((p for p in below if (title := _title(p)).startswith("ray::") and name in title), key=lambda p: p.pid)


def listening() -> dict[str, set[str]]:
    """The addresses on which Ray's processes below this one listen now, by the processes' titles."""
    found: dict[str, set[str]] = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended
            ours = {at.laddr.ip for at in process.net_connections("inet") if at.status == psutil.CONN_LISTEN}
            found[f"{_title(process)} {process.pid}"] = ours
    return found


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
