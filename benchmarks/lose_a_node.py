"""Checks that a render and a pretraining give the same result if a cluster of three nodes, on this machine, loses one.

    python -m benchmarks.lose_a_node [--images 1500] [--epochs 12]

Prints what was lost when, how long each run took compared with an undisturbed one, and whether bytes and losses are equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from skimage import data

from pipeline.shards.pack import pack

_HEALTH = {"health_check_period_ms": 500, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 3}
_WAIT_SECONDS = 600.0


class Nodes:
    """A head without CPUs and two nodes; whichever is lost is replaced, as an autoscaler would."""

    def __init__(self, cpus: float) -> None:
        from ray.cluster_utils import Cluster

        self._cpus, self._folder = cpus, tempfile.mkdtemp(prefix="nodes-")
        head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 150 * 2**20, "temp_dir": self._folder}
        self._cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": _HEALTH})
        self._nodes = [self._add() for _ in range(2)]

    @property
    def address(self) -> str:
        """For `RAY_ADDRESS`."""
        return str(self._cluster.address)

    def _add(self) -> Any:
        return self._cluster.add_node(num_cpus=self._cpus, object_store_memory=150 * 2**20)

    def kill(self, number: int) -> None:
        """Kill a node with all that runs on it, and start another one."""
        self._cluster.remove_node(self._nodes[number], allow_graceful=False)
        self._nodes[number] = self._add()

    def close(self) -> None:
        """Stop all."""
        self._cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)


def photos(folder: Path, count: int) -> None:
    """Crops of scikit-image's photos, in shards."""
    sources = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    for n in range(count):
        source, side = sources[n % len(sources)], 64 + n % 32
        top, left = (7 * n) % (source.shape[0] - side), (11 * n) % (source.shape[1] - side)
        path = folder / "photos" / str(n % len(sources)) / f"{n:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source[top : top + side, left : left + side]).save(path, quality=90)
    pack(str(folder / "photos"), str(folder / "shards"), shard_size=160_000)


def run(nodes: Nodes, words: list[str], ready: Callable[[], bool], victim: int | None) -> float:
    """Run a command on the cluster, losing a node when `ready` says so; returns seconds."""
    environment = {
        **os.environ,
        "RAY_ADDRESS": nodes.address,
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "PYTHONWARNINGS": "ignore",
    }
    environment["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "12"
    started, lost = time.perf_counter(), False
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, "-m", "pseudolabel", *words], env=environment, stdout=log, stderr=log)
        while process.poll() is None:
            if victim is not None and not lost and ready():
                nodes.kill(victim)
                lost = True
                print(f"  node {victim} lost after {time.perf_counter() - started:.1f} s")
            time.sleep(0.05)
            if time.perf_counter() - started > _WAIT_SECONDS:
                process.kill()
        log.seek(0)
        if process.returncode or (victim is not None and not lost):
            raise SystemExit(f"exit code {process.returncode}, node lost: {lost}\n{log.read().decode()}")
    return time.perf_counter() - started


def tree(folder: Path) -> dict[str, str]:
    """Checksums of all files."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=12)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lose-"))
    photos(folder, given.images)
    document = {
        "name": "calm",
        "seed": 5,
        "corpus": {"shards": str(folder / "shards")},
        "image": {"size": 32},
        "tasks": {"rotation": {}, "occlusion": {}},
        "placement": {"actors": 2, "cpus": 0.5},
        "training": {
            "backbone": {"name": "resnet10", "stem": "standard"},
            "batch": 64,
            "epochs": given.epochs,
            "workers": 2,
            "cpus": 1,
            "log_steps": 1,
            "order": {"window": 4, "groups": 4},
        },
        "failures": {"restarts": 5},
        "storage": {"runs": str(folder / "runs")},
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(document))
    nodes = Nodes(cpus=2)
    try:
        for victim in (None, 0, 1):
            name = "calm" if victim is None else f"stormy-{victim}"
            out, log = folder / name, folder / "runs" / name / "pretrain.jsonl"
            took = run(
                nodes, ["render", str(recipe), "--out", str(out)], lambda out=out: len(list(out.glob("commits/*"))) >= 3, victim
            )
            same = "" if victim is None else f", bytes equal: {tree(out) == tree(folder / 'calm')}"
            print(f"render {name}: {took:.1f} s{same}", flush=True)
            words = ["pretrain", str(recipe), "--set", f"name={name}"]
            took = run(nodes, words, lambda log=log: log.exists() and log.read_text().count("\n") >= 40, victim)
            results = [json.loads((folder / "runs" / one / "pretrain.json").read_text())["tasks"] for one in (name, "calm")]
            same = "" if victim is None else f", losses equal: {results[0] == results[1]}"
            print(f"pretrain {name}: {took:.1f} s{same}", flush=True)
    finally:
        nodes.close()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
