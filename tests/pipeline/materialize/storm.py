"""Kills whatever takes part in a render, at seeded random times, until it is done: actors, nodes and the driver itself."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

_WAIT_SECONDS = 120.0
_HEALTH = {"health_check_period_ms": 500, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 3}


class Storm:
    """A Ray cluster of a head and two nodes on this machine, a driver that renders on it, and the killing of them.

    Args:
        recipe: path of the recipe, whose actors need one CPU together.
        log: where the driver's words go.
        seed: of the times and of the victims.
    """

    def __init__(self, recipe: Path, log: Path, seed: int) -> None:
        from ray.cluster_utils import Cluster

        self._recipe, self._log, self._rng = recipe, log, random.Random(seed)
        self._folder = tempfile.mkdtemp(
            prefix="storm-"
        )  # of its own, lest others on this machine take it for the cluster to join
        head: dict[str, Any] = {
            "num_cpus": 1,
            "include_dashboard": False,
            "object_store_memory": 100 * 2**20,
            "_system_config": _HEALTH,
        }
        head["temp_dir"] = self._folder
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes = [self._add_node() for _ in range(2)]
        self.killed: Counter[str] = Counter()
        self.endings: list[int] = []

    def _add_node(self) -> Any:
        return self._cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)

    def run(self, out: Path, victims: list[str], pause: tuple[float, float]) -> None:
        """Render to the end, killing one victim after another (`actor`, `raylet`, `SIGTERM` or `SIGKILL` of the driver).

        Victims that are left when the render is done stay in the list.
        """
        driver = self._start(out)
        while driver.poll() != 0:
            if driver.poll() is not None:
                self.endings.append(driver.returncode)
                driver = self._start(out)
            if not victims:
                driver.wait(_WAIT_SECONDS)
                continue
            if self._wait(driver, self._rng.uniform(*pause)):
                continue
            if self._kill(victims[0], driver):
                self.killed[victims.pop(0)] += 1

    def close(self) -> None:
        """Stop the cluster."""
        self._cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, out: Path) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "RAY_ADDRESS": self._cluster.address, "PYTHONWARNINGS": "ignore"}
        with self._log.open("ab") as log:
            words = [sys.executable, "-m", "cluster", "render", str(self._recipe), "--out", str(out)]
            return subprocess.Popen(words, env=environment, stdout=log, stderr=log)

    def _wait(self, driver: subprocess.Popen[bytes], seconds: float) -> bool:
        """Whether the driver ended within this time."""
        try:
            driver.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _kill(self, victim: str, driver: subprocess.Popen[bytes]) -> bool:
        if victim == "actor":
            actors = [p for p in psutil.Process().children(recursive=True) if "_RenderShards" in _title(p)]
            if not actors:
                return False
            self._rng.choice(sorted(actors, key=lambda p: p.pid)).kill()
        elif victim == "raylet":
            node = self._nodes.pop(self._rng.randrange(len(self._nodes)))
            self._cluster.remove_node(node, allow_graceful=False)
            self._nodes.append(self._add_node())
        else:
            driver.send_signal(signal.Signals[victim])
            driver.wait(_WAIT_SECONDS)
        return True


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def settle() -> None:
    """Wait until no actor of a render is left: those of a driver that was killed go on for a moment."""
    end = time.monotonic() + _WAIT_SECONDS
    while any("_RenderShards" in _title(p) for p in psutil.Process().children(recursive=True)):
        if time.monotonic() > end:
            raise TimeoutError("actors outlive their driver")
        time.sleep(0.2)
