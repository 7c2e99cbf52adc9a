"""A cluster of several nodes on this machine with a driver that pretrains on it; kills workers, nodes and the driver."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.recipe import Recipe, load_recipe
from tests.cluster_of_one import QUICK, workers
from tests.trainers.ledgers import trained

_WAIT_SECONDS = 240.0
_HEALTH = {"health_check_period_ms": 500, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 3}
_SOON = {**QUICK, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5", "PYTHONWARNINGS": "ignore"}
_STORE = {"object_store_memory": 100 * 2**20}


class Tempest:
    """A head of two CPUs, room for data actors only, and nodes of three, a worker's.

    Args:
        recipe: path of the recipe; its ledger must be on.
        log: file for the driver's output.
        nodes: how many there are besides the head.
    """

    def __init__(self, recipe: Path, log: Path, nodes: int = 2) -> None:
        from ray.cluster_utils import Cluster

        self.recipe: Recipe = load_recipe(recipe)
        self._path, self._log = recipe, log
        self._folder = tempfile.mkdtemp(prefix="tempest-")
        head: dict[str, Any] = {"num_cpus": 2, "include_dashboard": False, "_system_config": _HEALTH, **_STORE}
        os.environ |= QUICK
        self._cluster = Cluster(initialize_head=True, head_node_args={**head, "temp_dir": self._folder})
        self.nodes = [self.add_node() for _ in range(nodes)]
        self.driver: subprocess.Popen[bytes] | None = None

    def add_node(self) -> Any:
        """Add a node."""
        return self._cluster.add_node(num_cpus=3, **_STORE)

    def start(self, path: Path | None = None, **settings: Any) -> None:
        """Start the driver, with another recipe if asked to; settings are keys of `training` and their values."""
        sets = [word for key, value in settings.items() for word in ("--set", f"training.{key}={json.dumps(value)}")]
        words = [sys.executable, "-m", "pseudolabel", "pretrain", str(path or self._path), *sets]
        environment = {**os.environ, **_SOON, "RAY_ADDRESS": self._cluster.address}
        with self._log.open("ab") as log:
            self.driver = subprocess.Popen(words, env=environment, stdout=log, stderr=log)

    def steps(self) -> int:
        """How many steps have been trained."""
        return len(trained(self.recipe))

    def wait_for(self, steps: int) -> bool:
        """Wait until so many steps are trained; False if the driver ends before."""
        return self.wait_until(lambda: self.steps() >= steps)

    def wait_until(self, there: Callable[[], bool]) -> bool:
        """Wait until the condition holds; False if the driver ends before."""
        assert self.driver is not None
        end = time.monotonic() + _WAIT_SECONDS
        while not there():
            if self.driver.poll() is not None:
                return False
            if time.monotonic() > end:
                raise TimeoutError(f"waited for {_WAIT_SECONDS:g} s, {self.steps()} steps are trained; see {self._log}")
            time.sleep(0.1)
        return True

    def end(self, seconds: float = _WAIT_SECONDS) -> int:
        """Wait until the driver ends, for at most `seconds`; returns its exit code."""
        assert self.driver is not None
        return self.driver.wait(seconds)

    def ends_within(self, seconds: float) -> bool:
        """Whether the driver ends by itself."""
        assert self.driver is not None
        try:
            self.driver.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self, victim: str, rng: random.Random) -> None:
        """Kill a `worker`, a `node` (which is lost until `add_node`) or the `driver`."""
        assert self.driver is not None
        if victim == "driver":
            self.driver.kill()
        elif victim == "node":
            self._cluster.remove_node(self.nodes.pop(rng.randrange(len(self.nodes))), allow_graceful=False)
        else:
            rng.choice(workers("RayTrainWorker")).kill()

    def close(self) -> None:
        """Stop driver and cluster."""
        if self.driver is not None and self.driver.poll() is None:
            self.driver.kill()
            self.driver.wait()
        self._cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)
