"""Checks that the sequence of global batches is exact: a run is killed at random moments and resumed with other workers.

    python -m benchmarks.exact_training FOLDER [--kills 10] [--seed 0] [--workers 1 2 3 4] [--steps 400]

FOLDER is emptied and used. A cluster of a head and two nodes runs on this machine; the victim of each kill is a worker, a node or
the driver. With a single number of `--workers` the losses are compared too, to the last bit, with those of an undisturbed run.
Prints the kills and what was found; exit code 1 if a step trained other samples than it should have.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import yaml
from PIL import Image
from skimage import data

from pipeline.shards.writing import TarWriter
from tests.trainers.ledgers import due, trained
from tests.trainers.tempest import Tempest

BATCH = 16
_TO_THE_END = 3600.0


def write_corpus(folder: Path) -> int:
    """Tiles of three photos in uneven shards; returns the number of tiles."""
    photos, counts = (data.chelsea(), data.coffee(), data.rocket()), (1, 7, 60, 90, 34)
    folder.mkdir(parents=True)
    for i, count in enumerate(counts):
        with (folder / f"shard-{i}.tar").open("wb") as file:
            tar = TarWriter(file)
            for n in range(count):
                encoded = io.BytesIO()
                Image.fromarray(photos[i % 3][2 * n : 2 * n + 40, 3 * n : 3 * n + 40]).save(encoded, "JPEG")
                tar.add(f"{i}-{n:03d}.jpg", encoded.getvalue())
            tar.finish()
    return sum(counts)


def write_recipe(folder: Path, name: str, steps: int, samples: int) -> Path:
    """A small network on rotation, a checkpoint every third step."""
    each = samples // BATCH
    recipe = {
        "name": name,
        "seed": 7,
        "corpus": {"shards": str(folder / "shards")},
        "image": {"size": 32},
        "tasks": {"rotation": {}},
        "placement": {"cpus": 0.5},
        "failures": {"restarts": 0},
        "training": {
            "backbone": {"name": "resnet10", "stem": "standard"},
            "batch": BATCH,
            "epochs": -(-steps // each),
            "log_steps": 1,
            "threads": 1,
            "checkpoint_epochs": 3 / each,
            "order": {"window": 2, "groups": 4},
        },
        "storage": {"runs": str(folder / "runs")},
        "tracking": {"samples": True, "tensorboard": False},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=400)
    given = parser.parse_args()
    shutil.rmtree(given.folder, ignore_errors=True)
    samples = write_corpus(given.folder / "shards")
    rng, started = random.Random(given.seed), time.monotonic()
    victims = [("worker", "node", "driver")[i % 3] for i in range(given.kills)]
    rng.shuffle(victims)
    tempest = Tempest(write_recipe(given.folder, "stormy", given.steps, samples), given.folder / "driver.log")
    endings: Counter[int] = Counter()
    workers = 0
    try:
        for i, victim in enumerate(victims):
            workers = rng.choice([n for n in given.workers if n != workers] or given.workers)
            tempest.start(workers=workers)
            at = tempest.steps() + rng.randint(2, max(3, given.steps // (given.kills + 2)))
            if not tempest.wait_for(at):
                sys.exit(f"the driver ended by itself before kill {i + 1}; see {given.folder}/driver.log")
            time.sleep(rng.random())
            tempest.kill(victim, rng)
            print(f"kill {i + 1}: {victim}, {workers} workers, {tempest.steps()} steps trained", flush=True)
            if victim == "node":
                if not tempest.ends_within(60):  # no worker of the run was there, so it goes on
                    tempest.kill("driver", rng)
                tempest.nodes.append(tempest.add_node())
            endings[tempest.end()] += 1
        workers = rng.choice([n for n in given.workers if n != workers] or given.workers)
        tempest.start(workers=workers)
        endings[tempest.end(_TO_THE_END)] += 1
        stormy = tempest.recipe
        calm = None
        if len(given.workers) == 1:
            tempest.start(write_recipe(given.folder, "calm", given.steps, samples), workers=workers)
            tempest.end(_TO_THE_END)
            calm = given.folder / "runs" / "calm" / "pretrain.json"
    finally:
        tempest.close()
    found, wanted, took = trained(stormy), due(stormy), time.monotonic() - started
    wrong = [step for step in wanted if found.get(step) != wanted[step]]
    print(f"{len(wanted)} steps, {len(wrong)} with other samples than due; exit codes {dict(endings)}; {took:.0f} s")
    if calm is not None:
        results = (calm, given.folder / "runs" / "stormy" / "pretrain.json")
        losses = [json.loads(path.read_text())["tasks"]["rotation"]["loss"] for path in results]
        print(f"losses equal to the last bit: {losses[0] == losses[1]} ({len(losses[0])} of them)")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
