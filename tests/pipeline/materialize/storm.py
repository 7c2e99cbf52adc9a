"""Renders, or does other jobs, while actors, nodes and the driver are killed at seeded random times, until the job is done."""

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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from skimage import data

from pipeline.materialize.driver import _ShardActor
from pipeline.shards.pack import pack
from tests.cluster_of_one import QUICK, workers

_ACTOR = _ShardActor.__name__
"""A part of the titles of the processes that do the shards."""
_WAIT_SECONDS = 300.0
_HEALTH = {"health_check_period_ms": 500, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 3}


VICTIMS = ["actor"] * 15 + ["raylet"] * 2 + ["SIGKILL", "SIGTERM", "SIGTERM"]
ONE_OF_EACH = ["actor", "raylet", "SIGKILL"]
ENDINGS = {"SIGKILL": {-signal.SIGKILL}, "SIGTERM": {130, -signal.SIGTERM}}
"""The exit codes of a driver that is killed so: 130 is what the command makes of it, once it is up."""


def prepare(folder: Path, images: int = 2400) -> Path:
    """A recipe of four tasks and two drawings, and its corpus: crops of six photos, about 40 in a shard.

    The crops are 64 to 95 pixels; one of 500 is no image. Returns the path of the recipe.
    """
    photos = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), data.cat(), data.immunohistochemistry()]
    rng = random.Random(0)
    for n in range(images):
        photo, side = photos[n % len(photos)], rng.randrange(64, 96)
        top, left = rng.randrange(photo.shape[0] - side), rng.randrange(photo.shape[1] - side)
        path = folder / "photos" / f"{n % len(photos)}" / f"{n:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if n % 500 == 250:
            path.write_bytes(b"not an image")
        else:
            Image.fromarray(photo[top : top + side, left : left + side]).save(path, quality=90)
    pack(str(folder / "photos"), str(folder / "shards"), shard_size=160_000)
    recipe = {
        "name": "storm",
        "seed": 5,
        "corpus": {"shards": str(folder / "shards")},
        "image": {"size": 64},
        "tasks": {"rotation": {}, "jigsaw": {"grid": 2, "permutations": 8}, "occlusion": {}, "colorization": {}},
        "placement": {"actors": 2, "cpus": 0.5},
        "render": {"epochs": 2},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


@dataclass
class Outcome:
    """What was killed, what else ended a driver, and the folders that were written."""

    killed: Counter[str]
    surprises: list[str]
    folders: list[Path]


def weather(
    words: Sequence[str],
    folder: Path,
    seed: int,
    kills: Sequence[str] = VICTIMS,
    pause: tuple[float, float] = (0.1, 1.2),
    nodes: int = 2,
) -> Outcome:
    """Run a command under kills, in an order and at times that the seed says.

    Args:
        words: the command, without `--out`.
        folder: gets the results and `driver.log`.
        seed: of the order and the times.
        kills: the victims.
        pause: the least and the greatest number of seconds between two of them.
        nodes: as of `Storm`.
    """
    victims = list(kills)
    random.Random(seed).shuffle(victims)
    storm = Storm(words, folder / "driver.log", seed, nodes)
    folders: list[Path] = []
    try:
        while victims:  # a fast machine is done before all are killed, and then does it again
            if len(folders) > 3 * len(kills):
                raise LookupError(f"{len(folders)} jobs went by, and there was no {victims[0]} to kill")
            folders.append(folder / f"stormy-{len(folders)}")
            storm.run(folders[-1], victims, pause)
        settle()
    finally:
        storm.close()
    return Outcome(storm.killed, storm.surprises, folders)


class Storm:
    """A Ray cluster of a head and one or two nodes on this machine, and a driver that works on it; kills any of them.

    Args:
        words: the command, without `--out`; its actors need one CPU together.
        log: file for the driver's output.
        seed: seed of the times and of the victims.
        nodes: how many there are besides the head.
    """

    def __init__(self, words: Sequence[str], log: Path, seed: int, nodes: int = 2) -> None:
        from ray.cluster_utils import Cluster

        self._words, self._log, self._rng = words, log, random.Random(seed)
        self._folder = tempfile.mkdtemp(prefix="storm-")  # its own, so that no other process joins the cluster
        head: dict[str, Any] = {
            "num_cpus": 3 - nodes,  # so that without one of its nodes the cluster has what a render needs at least
            "include_dashboard": False,
            "object_store_memory": 100 * 2**20,
            "_system_config": _HEALTH,
        }
        head["temp_dir"] = self._folder
        os.environ |= QUICK
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes = [self._add_node() for _ in range(nodes)]
        self.killed: Counter[str] = Counter()
        self.surprises: list[str] = []
        """How drivers ended that nobody had killed."""

    def _add_node(self) -> Any:
        return self._cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)

    def run(self, out: Path, victims: list[str], pause: tuple[float, float]) -> None:
        """Run to the end, killing one victim after another (`actor`, `raylet`, `SIGTERM` or `SIGKILL` of the driver).

        Victims that are left when the job is done stay in the list.
        """
        driver = self._start(out)
        while (code := driver.poll()) != 0:
            if code is not None:
                self.surprises.append(f"exit code {code}")
                driver = self._start(out)
            if not victims:
                driver.wait(_WAIT_SECONDS)
            elif not self._wait(driver, self._rng.uniform(*pause)) and self._kill(victims[0], driver):
                if victims[0] in ENDINGS and driver.returncode:
                    if driver.returncode not in ENDINGS[victims[0]]:
                        self.surprises.append(f"exit code {driver.returncode} by {victims[0]}")
                    driver = self._start(out)
                self.killed[victims.pop(0)] += 1

    def close(self) -> None:
        """Stop the cluster."""
        self._cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, out: Path) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "RAY_ADDRESS": self._cluster.address, "PYTHONWARNINGS": "ignore"}
        with self._log.open("ab") as log:
            words = [sys.executable, "-m", "pseudolabel", *self._words, "--out", str(out)]
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
            actors = workers(_ACTOR)
            if not actors:
                return False
            self._rng.choice(actors).kill()
        elif victim == "raylet":
            node = self._nodes.pop(self._rng.randrange(len(self._nodes)))
            self._cluster.remove_node(node, allow_graceful=False)
            self._nodes.append(self._add_node())
        else:
            driver.send_signal(signal.Signals[victim])
            driver.wait(_WAIT_SECONDS)
        return True


def settle() -> None:
    """Wait until no actor of a job is left: those of a killed driver live on for a moment."""
    end = time.monotonic() + _WAIT_SECONDS
    while workers(_ACTOR):
        if time.monotonic() > end:
            raise TimeoutError("actors outlive their driver")
        time.sleep(0.2)
