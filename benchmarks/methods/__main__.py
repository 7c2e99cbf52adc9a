"""Compares methods on CIFAR-10: one network, equal processor time for each, kNN and linear probe of what it learnt.

    python -m benchmarks.methods cifar10-train.tar cifar10-test.tar --minutes 10 --seeds 2 [--only simclr,byol]

The corpora are shards, or folders or tars of a folder a class, which are packed once under `--folder`. Each row is trained, in a
plain loop in this process, for as many steps as fit into its minutes of processor time; a few steps of a trial, which do not
count, tell how many these are, so that all schedules end with the last step. Probes are the product's own and do not count. The
rows `lightly_...` are the same methods by lightly: as many images, the same network, start, batch, optimizer and schedule, but
its transforms, heads and losses, in float32 over a torch DataLoader without worker processes. They need our row to be there.

Leaves a file a run under `OUT/runs`, and `OUT/methods.json` and `OUT/methods.md`, which are up to date after each run. Runs that
are there are not made again, so a comparison can be stopped and continued, and two processes can share the rows.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.methods import ours
from benchmarks.methods.probes import Probes
from benchmarks.methods.rows import ROWS, Setting, recipe_of
from benchmarks.methods.table import Record, markdown
from cluster.reports.machine import this_machine, versions
from pipeline.shards.index import NAME
from pipeline.shards.pack import pack
from pipeline.streaming.memory import keep_memory
from trainers.networks.backbones import Backbone, build_backbone

_UNCOUNTED, _LEAST = 2, 4
_TRIAL = 0.03  # of the budget

Training = Callable[[int], Iterator[Backbone]]
"""Trains for so many steps, and yields the backbone before the first and after each."""


def fitting(training: Training, seconds: float) -> int:
    """How many steps fit into so many seconds of processor time, by a trial of a few."""
    took: list[float] = []
    running = training(10_000)
    next(running)
    before = time.process_time()
    for _ in running:
        now = time.process_time()
        took.append(now - before)
        before = now
        if len(took) >= _UNCOUNTED + _LEAST and sum(took) >= _TRIAL * seconds:
            break
    return max(1, math.floor(seconds / statistics.mean(took[_UNCOUNTED:])))


def trained(training: Training, steps: int, curve: int, look: Callable[[Backbone], float]) -> tuple[Backbone, dict[str, Any]]:
    """Train, and measure the processor time; `look` is called `curve` times, at even distances, and not counted.

    Returns:
        The backbone, and `cpu`, seconds, with `curve`: pairs of a step and what `look` returned.
    """
    points = {round(steps * (k + 1) / (curve + 1)) for k in range(curve)}
    running = training(steps)
    backbone = next(running)
    seen, cpu, begun = [], 0.0, time.process_time()
    for step, backbone in enumerate(running, 1):
        if step in points:
            cpu += time.process_time() - begun
            seen.append((step, look(backbone)))
            begun = time.process_time()
    return backbone, {"cpu": cpu + time.process_time() - begun, "curve": seen}


def run(name: str, seed: int, setting: Setting, probes: Probes, steps: int | None) -> Record:
    """Train and probe a row; `steps` is None if its processor time determines them."""
    row = ROWS[name]
    recipe = recipe_of(row, setting, seed)
    record: Record = {"row": name, "seed": seed, "steps": 0, "images": 0, "cpu": 0.0, "curve": []}
    if row.repeats:
        from benchmarks.methods import by_lightly

        training: Training = partial(by_lightly.training, row.repeats, recipe)
    else:
        training = partial(ours.training, recipe)
    if not row.tasks and not row.repeats:
        backbone = build_backbone(recipe.training.backbone, 32, seed, ("vector",))
    else:
        steps = steps or fitting(training, 60 * setting.minutes)
        backbone, about = trained(training, steps, setting.curve, lambda net: probes(net, curve=True)["knn vector"])
        curve = [(step * setting.batch, value) for step, value in about["curve"]]
        record |= {"steps": steps, "images": steps * setting.batch, "cpu": about["cpu"], "curve": curve}
    return {**record, "accuracies": probes(backbone)}


def _shards(source: str, folder: Path) -> str:
    """The source if it holds shards; else where it is packed."""
    if (Path(source) / NAME).exists():
        return source
    place = folder / Path(source).stem
    if not (place / NAME).exists():
        pack(source, str(place))
    return str(place)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", help="images to learn from, and to fit probes on")
    parser.add_argument("test", help="images to test on")
    parser.add_argument("--minutes", type=float, default=10.0, help="of processor time, for each training")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", help="rows, separated by commas: " + ", ".join(ROWS))
    parser.add_argument("--backbone", default="resnet10")
    parser.add_argument("--stem", default="standard", help="`small` takes some ten times as long on a CPU")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", default="auto", help="of our rows; lightly's compute in float32")
    parser.add_argument("--labels", type=float, default=0.2, help="share of the training labels that probes use")
    parser.add_argument("--tested", type=float, default=0.5, help="share of the test images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--curve", type=int, default=0, help="how many times kNN is measured during a training")
    parser.add_argument("--folder", type=Path, default=Path(".bench"), help="where packed shards go")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    given = parser.parse_args()
    given.rows = given.only.split(",") if given.only else list(ROWS)
    if unknown := set(given.rows) - set(ROWS):
        parser.error(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    return given


def main() -> None:
    """Train, probe and report, a run at a time."""
    given = _arguments()
    corpora = [_shards(source, given.folder) for source in (given.train, given.test)]
    names = ("minutes", "backbone", "stem", "batch", "precision", "labels", "tested", "threads", "curve")
    setting = Setting(*corpora, **{name: getattr(given, name) for name in names})
    same = {name: value for name, value in asdict(setting).items() if name in names}
    torch.set_num_threads(given.threads)
    keep_memory()  # as training workers do
    folder = given.out / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    probes = Probes(recipe_of(ROWS["random"], setting, 0), setting)
    report(given.out, same, probes.counts)  # ends at once if there are runs of another setting
    for seed in range(given.seeds):
        for name in given.rows:
            path = folder / f"{name}-{seed}.json"
            if path.exists():
                continue
            steps, like = None, folder / f"{ROWS[name].repeats}-{seed}.json"
            if ROWS[name].repeats:
                if not like.exists():
                    print(f"{name}, seed {seed}: left out, since {ROWS[name].repeats} is not there", flush=True)
                    continue
                steps = json.loads(like.read_text())["steps"]
            record = {**run(name, seed, setting, probes, steps), "setting": same}
            path.write_text(json.dumps(record))
            rate = f"{record['images'] / record['cpu']:.0f}" if record["cpu"] else "no"
            found = ", ".join(f"{measure} {100 * value:.1f} %" for measure, value in record["accuracies"].items())
            print(f"{name}, seed {seed}: {record['images']:,} images, {rate} images/CPU s: {found}", flush=True)
            report(given.out, same, probes.counts)
    print(report(given.out, same, probes.counts))


def report(out: Path, setting: dict[str, Any], counts: dict[str, int]) -> str:
    """Write all runs that are there as `methods.json` and `methods.md`; returns the latter."""
    records = [json.loads(path.read_text()) for path in sorted((out / "runs").glob("*.json"))]
    if other := [record for record in records if record["setting"] != setting]:
        sys.exit(f"{out} holds runs of another setting, such as {other[0]['row']}: {other[0]['setting']}; give another --out")
    content = {"machine": this_machine().as_dict(), "versions": versions(), **counts, "setting": setting, "runs": records}
    (out / "methods.json").write_text(json.dumps(content, indent=1))
    text = markdown({**setting, **counts}, records)
    (out / "methods.md").write_text(text + "\n")
    return text


if __name__ == "__main__":
    main()
