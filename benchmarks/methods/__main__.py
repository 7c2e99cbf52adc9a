"""Compares methods on CIFAR-10: one network, equal processor time for each, kNN and linear probe of what it learnt.

    python -m benchmarks.methods cifar10-train.tar cifar10-test.tar --minutes 10 --seeds 2 [--only simclr,byol]

The corpora are shards, or folders or tars of a folder a class, which are packed once under `--folder`. Each row is trained, in a
plain loop in this process, for as many steps as fit into its minutes of processor time. How many these are is measured before all
trainings, a few steps a row, in rounds in which the rows take turns: this part wants idle cores. What the trainings lead to then
depends on nothing else that the machine does. Probes are the product's own and do not count. The rows `lightly_...` are the same
methods by lightly: as many images, the same network, start, batch, optimizer and schedule, but its transforms, heads and losses,
in float32 over a torch DataLoader without worker processes.

Leaves `OUT/rates.json`, a file a run under `OUT/runs`, and `OUT/methods.json` and `OUT/methods.md`, which are up to date after
each run. Runs that are there are not made again: a comparison can be stopped and continued. `--rates` measures the rates only.
"""

from __future__ import annotations

import argparse
import json
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

_UNCOUNTED = 2
"""Steps that do not count: the first allocate and choose kernels."""
_ROUNDS, _SECONDS = 3, 5.0

Training = Callable[[int], Iterator[Backbone]]
"""Trains for so many steps, and yields the backbone before the first and after each."""


def training_of(name: str, setting: Setting, seed: int) -> Training:
    """How a row trains."""
    row = ROWS[name]
    if not row.repeats:
        return partial(ours.training, recipe_of(row, setting, seed))
    from benchmarks.methods import by_lightly

    return partial(by_lightly.training, row.repeats, recipe_of(ROWS[row.repeats], setting, seed))


def seconds_a_step(training: Callable[[int], Iterator[object]]) -> float:
    """Processor seconds of a step, from some seconds of steps."""
    running = training(10_000)
    for _, _ in zip(range(1 + _UNCOUNTED), running):
        pass
    begun = time.process_time()
    for steps, _ in enumerate(running, 1):
        if (took := time.process_time() - begun) >= _SECONDS:
            return took / steps
    raise AssertionError("a training of 10,000 steps has ended")


def step_times(names: list[str], setting: Setting, path: Path, same: dict[str, Any]) -> dict[str, list[float]]:
    """Processor seconds of a step, by row, once a round; kept in a file, whose rows are not measured again."""
    kept = json.loads(path.read_text()) if path.exists() else {"setting": same, "rows": {}}
    if kept["setting"] != same:
        sys.exit(f"{path} holds rates of another setting: {kept['setting']}; give another --out")
    wanted = [name for name in names if name not in kept["rows"] and (ROWS[name].tasks or ROWS[name].repeats)]
    times: dict[str, list[float]] = {name: [] for name in wanted}
    for _ in range(_ROUNDS):
        for name in wanted:
            times[name].append(seconds_a_step(training_of(name, setting, 0)))
            print(f"{name}: {setting.batch / times[name][-1]:.0f} images/CPU s", flush=True)
    kept["rows"] |= times
    path.write_text(json.dumps(kept))
    rows: dict[str, list[float]] = kept["rows"]
    return rows


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


def run(name: str, seed: int, setting: Setting, probes: Probes, times: dict[str, list[float]]) -> Record:
    """Train and probe a row."""
    record: Record = {"row": name, "seed": seed, "steps": 0, "images": 0, "cpu": 0.0, "curve": []}
    if name not in times:  # random weights
        backbone = build_backbone(recipe_of(ROWS[name], setting, seed).training.backbone, 32, seed, ("vector",))
    else:
        steps = round(60 * setting.minutes / statistics.median(times[ROWS[name].repeats or name]))
        look = partial(probes, curve=True)
        backbone, about = trained(training_of(name, setting, seed), steps, setting.curve, lambda net: look(net)["knn vector"])
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
    parser.add_argument("--rates", action="store_true", help="measure how fast each row is, and train none")
    parser.add_argument("--folder", type=Path, default=Path(".bench"), help="where packed shards go")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    given = parser.parse_args()
    given.rows = given.only.split(",") if given.only else list(ROWS)
    if unknown := set(given.rows) - set(ROWS):
        parser.error(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    if alone := [name for name in given.rows if (ROWS[name].repeats or name) not in given.rows]:
        parser.error(f"{alone[0]} trains for as many steps as {ROWS[alone[0]].repeats}: name that too")
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
    alike = {name: same[name] for name in ("backbone", "stem", "batch", "precision", "threads")}
    times = step_times(given.rows, setting, given.out / "rates.json", alike)
    if given.rates:
        return
    probes = Probes(recipe_of(ROWS["random"], setting, 0), setting)
    write = partial(report, given.out, same, probes.counts, times)
    write()  # ends at once if there are runs of another setting
    for seed in range(given.seeds):
        for name in given.rows:
            path = folder / f"{name}-{seed}.json"
            if path.exists():
                continue
            record = {**run(name, seed, setting, probes, times), "setting": same}
            path.write_text(json.dumps(record))
            found = ", ".join(f"{measure} {100 * value:.1f} %" for measure, value in record["accuracies"].items())
            print(f"{name}, seed {seed}: {record['images']:,} images: {found}", flush=True)
            write()
    print(write())


def report(out: Path, setting: dict[str, Any], counts: dict[str, int], times: dict[str, list[float]]) -> str:
    """Write all runs that are there as `methods.json` and `methods.md`; returns the latter."""
    records = [json.loads(path.read_text()) for path in sorted((out / "runs").glob("*.json"))]
    if other := [record for record in records if record["setting"] != setting]:
        sys.exit(f"{out} holds runs of another setting, such as {other[0]['row']}: {other[0]['setting']}; give another --out")
    content = {"machine": this_machine().as_dict(), "versions": versions(), **counts, "setting": setting}
    content |= {"seconds_a_step": times, "runs": records}
    (out / "methods.json").write_text(json.dumps(content, indent=1))
    text = markdown(
        {**setting, **counts}, records, {name: setting["batch"] / statistics.median(each) for name, each in times.items()}
    )
    (out / "methods.md").write_text(text + "\n")
    return text


if __name__ == "__main__":
    main()
