"""One Ray for the whole test session, and the means to kill its workers as a failing machine would."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import psutil
import pytest

CPUS = 6


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A local Ray with more logical CPUs than the machine has: tests prove behaviour, not speed."""
    import ray

    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
    ray.init(
        "local",
        num_cpus=CPUS,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        object_store_memory=500 * 2**20,
        _system_config={"metrics_report_interval_ms": 500},
    )
    yield
    ray.shutdown()


def kill_worker(name: str) -> int:
    """SIGKILL the first Ray worker process of this session whose title contains `name`; returns its pid."""
    for process in psutil.Process().children(recursive=True):
        title = " ".join(process.cmdline())
        if title.startswith("ray::") and name in title:
            os.kill(process.pid, signal.SIGKILL)
            return process.pid
    titles = sorted(" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True))
    raise LookupError(f"no Ray worker process with {name!r} in its title, only {[t for t in titles if t.startswith('ray::')]}")
