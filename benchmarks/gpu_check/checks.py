"""The steps of the GPU check: each runs commands as a user would, and checks what they leave."""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from benchmarks.gpu_check import photos
from benchmarks.gpu_check.steps import Failed, Skipped, Step, Turn

_HERE = Path(__file__).resolve().parents[2]
_PSEUDOLABEL = (sys.executable, "-m", "pseudolabel")
_NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
_ON_CPU = "no GPU: DALI and the network ran on the CPU"


@dataclass(frozen=True)
class Machine:
    """Where the check runs and how much it does there.

    Args:
        folder: for all that it writes.
        absent: why there is no GPU to use; empty if there is one.
    """

    folder: Path
    absent: str

    @property
    def gpu(self) -> bool:
        """Whether there is a GPU to use."""
        return not self.absent

    def needs_gpu(self) -> None:
        """Skip the step if there is no GPU.

        Raises:
            Skipped: there is none.
        """
        if self.absent:
            raise Skipped(self.absent)

    def recipe(self, name: str, render: str = "trainer", epochs: int = 2, gpus: float = 1.0, **training: Any) -> Path:
        """Write a recipe of four tasks on the photos; on a GPU with 224 pixels and a ResNet-50, without one in miniature.

        Args:
            name: of the run.
            render: the placement.
            epochs: how long.
            gpus: of the training worker; the actor takes the rest.
            training: further keys of that section.
        """
        if not (self.folder / "shards/test/index.parquet").exists():
            raise Skipped("the photos were not made")
        own, rest = (gpus, 1 - gpus) if self.gpu else (0, 0)
        optimizer = {"name": "adamw", "lr": 3e-4}
        document = {
            "name": name,
            "seed": 5,
            "corpus": {"shards": str(self.folder / "shards/train")},
            "image": {"size": 224 if self.gpu else 48},
            "tasks": {"rotation": {}, "jigsaw": {"permutations": 24}, "occlusion": {}, "colorization": {}},
            "engine": "dali",
            "placement": {"render": render, "cpus": 0.5, "threads": 2, "gpus": rest},
            "failures": {"budget": 0.05},
            "training": {
                "backbone": {"name": "resnet50" if self.gpu else "resnet10", "stem": "standard"},
                "batch": 64 if self.gpu else 32,
                "epochs": epochs,
                "gpus": own,
                "log_steps": 2,
                "optimizer": optimizer,
                **training,
            },
            "downstream": {
                "train": str(self.folder / "shards/train"),
                "test": str(self.folder / "shards/test"),
                "layer": "layer3",
                "epochs": 2,
                "batch": 32,
                "optimizer": optimizer,
            },
            "storage": {"runs": str(self.folder / "runs")},
            "tracking": {"samples": True, "tensorboard": False},
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def noted(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """Add to figures, if there is no GPU, a note that they are not those of a GPU."""
        return {**figures, **({} if self.gpu else {"note": _ON_CPU})}


def steps(machine: Machine) -> list[Step]:
    """All steps, the most important first."""
    trainer, workers = {"render": "trainer"}, {"render": "workers", "gpus": 0.5}
    return [
        Step("photos", 60, partial(_photos, machine)),
        Step("doctor", 120, partial(_doctor, machine)),
        Step("tests marked gpu", 120, partial(_tests, machine)),
        Step("pixels, DALI on the GPU", 60, partial(_pixels, machine, "dali:0")),
        Step("pixels, DALI on the CPU", 60, partial(_pixels, machine, "dali")),
        Step("pretrain, placement trainer", 90, partial(_pretrain, machine, "trainer", trainer)),
        Step("evaluate", 120, partial(_downstream, machine, "evaluate")),
        Step("finetune", 150, partial(_downstream, machine, "finetune")),
        Step("render and verify", 90, partial(_render, machine)),
        Step("resume after a kill", 150, partial(_resume, machine)),
        Step("pretrain, placement workers", 90, partial(_pretrain, machine, "workers", workers)),
        Step("speed, DALI on the GPU", 40, partial(_speed, machine, "dali:0")),
        Step("speed, DALI on the CPU", 40, partial(_speed, machine, "dali")),
        Step("speed, CPU engine", 40, partial(_speed, machine, "cpu")),
    ]


def _photos(machine: Machine, turn: Turn) -> dict[str, Any]:
    train, test = (768, 192) if machine.gpu else (192, 64)  # whole batches: the bad ones are in each epoch
    photos.write(machine.folder / "photos", train, test)
    for part in ("train", "test"):
        source, shards = (str(machine.folder / kind / part) for kind in ("photos", "shards"))
        turn.command([*_PSEUDOLABEL, "pack", source, shards, "--shard-size", "2MiB"])
    return {"train": train, "test": test, "bad": photos.BAD, "pixels": f"{photos.WIDTH} x {photos.HEIGHT}"}


def _doctor(machine: Machine, turn: Turn) -> dict[str, Any]:
    checks = json.loads(turn.command([*_PSEUDOLABEL, "doctor", "--json"], codes=(0, 1)))["checks"]
    if failed := [f"{check['engine']}, {check['name']}: {check['found']}" for check in checks if check["status"] == "failed"]:
        raise Failed("; ".join(failed), {"checks": checks})
    counts = {status: sum(check["status"] == status for check in checks) for status in ("ok", "skipped")}
    absent = [f"{check['engine']}: {check['found']}" for check in checks if check["status"] == "skipped"]
    return {**counts, "checks": checks, **({"note": "skipped: " + "; ".join(absent)} if absent else {})}


def _tests(machine: Machine, turn: Turn) -> dict[str, Any]:
    machine.needs_gpu()
    report = turn.log.with_suffix(".xml")
    turn.command([sys.executable, "-m", "pytest", "-m", "gpu", f"--junitxml={report}", str(_HERE / "tests")])
    suite = ElementTree.parse(report).getroot()[0]
    ran = int(suite.get("tests", 0)) - int(suite.get("skipped", 0))
    if not ran:
        raise Failed(f"none of the tests ran ({turn.log})")
    return {"passed": ran}


def _pixels(machine: Machine, engine: str, turn: Turn) -> dict[str, Any]:
    found = _apart(machine, "pixels", engine, turn)
    if found["wrong"]:
        raise Failed("; ".join(found["wrong"]), {"columns": found["columns"]})
    return {"levels_apart_at_most": found["most"], "columns": found["columns"]}


def _speed(machine: Machine, engine: str, turn: Turn) -> dict[str, Any]:
    return _apart(machine, "speed", engine, turn)


def _apart(machine: Machine, what: str, engine: str, turn: Turn) -> dict[str, Any]:
    """The answer of `benchmarks.gpu_check.rendering` for an engine."""
    if engine == "dali:0":
        machine.needs_gpu()
    words = [sys.executable, "-m", "benchmarks.gpu_check.rendering", what, engine]
    printed = turn.command(words, {} if engine == "dali:0" else _NO_GPU)
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def _pretrain(machine: Machine, name: str, options: dict[str, Any], turn: Turn) -> dict[str, Any]:
    return machine.noted(_trained(machine, machine.recipe(name, **options), turn))


def _trained(machine: Machine, recipe: Path, turn: Turn) -> dict[str, Any]:
    """Pretrain, or resume, and check the figures; returns them."""
    result = _result_of(turn, "pretrain", str(recipe))
    metrics, counts = result["metrics"], result["counts"]
    losses = {name: value for name, value in metrics.items() if name.endswith("/loss")}
    if len(losses) != 4 or not all(map(math.isfinite, losses.values())):
        raise Failed(f"losses are missing, or not finite:  {losses}")
    if counts["quarantined"] != photos.BAD:
        raise Failed(f"{counts['quarantined']} samples were quarantined, of {photos.BAD} that are damaged")
    lines = [json.loads(line) for line in (machine.folder / "runs" / recipe.stem / "pretrain.jsonl").read_text().splitlines()]
    steady = lines[1:] or lines  # the first line holds the start
    return {
        "steps": counts["steps"],
        "images_per_second": round(statistics.median(line["samples_per_second"] for line in steady), 1),
        "wait_share": round(statistics.mean(line["wait_share"] for line in steady), 4),
        "losses": losses,
        "quarantined": counts["quarantined"],
    }


def _downstream(machine: Machine, command: str, turn: Turn) -> dict[str, Any]:
    if not (machine.folder / "runs/trainer/backbone.pt").exists():
        raise Skipped("pretraining with placement trainer has left no backbone")
    metrics = _result_of(turn, command, str(machine.recipe("trainer")))["metrics"]
    wrong = {name: value for name, value in metrics.items() if not (math.isfinite(value) and 0 <= value <= 1)}
    if wrong or not metrics:
        raise Failed(f"accuracies are missing, or not numbers:  {wrong}")
    return machine.noted(metrics)


def _render(machine: Machine, turn: Turn) -> dict[str, Any]:
    out = machine.folder / "pairs"
    recipe = machine.recipe("render", "workers", gpus=0)
    counts = _result_of(turn, "render", str(recipe), "--out", str(out))["counts"]
    if counts["failed"] or counts["quarantined"] != photos.BAD:
        raise Failed(f"{counts['failed']} shards failed, {counts['quarantined']} samples of {photos.BAD} were quarantined")
    _result_of(turn, "verify", str(out), "--deep", "--share", "0.5")
    return machine.noted(counts)


def _resume(machine: Machine, turn: Turn) -> dict[str, Any]:
    """Kill a pretraining once it has a checkpoint, with all its processes, and start it again."""
    from pipeline.recipe import load_recipe
    from tests.trainers.ledgers import due, trained
    from trainers.running.runs import RunFolder

    path = machine.recipe("resumed", epochs=8, checkpoint_epochs=2)
    recipe = load_recipe(path)
    place = Path(RunFolder(recipe).checkpoints("pretrain"))
    with turn.started([*_PSEUDOLABEL, "pretrain", str(path)]) as process:
        if not turn.wait(lambda: bool(list(place.glob("step-*.pt"))), process):
            raise Failed(f"it ended with exit code {process.returncode} before it had a checkpoint ({turn.log})")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    killed = max((int(file.name.split("-")[1]) for file in place.glob("step-*.pt")), default=0)
    figures = _trained(machine, path, turn)
    starts = sorted(int(file.name.split("-")[1]) for file in (Path(RunFolder(recipe).path("samples")) / "pretrain").iterdir())
    total = figures["steps"]
    if starts[0] != 0 or not 0 < starts[-1] < total:
        raise Failed(f"starts at steps {starts} of {total}: it was not resumed from a checkpoint")
    if trained(recipe) != due(recipe):
        raise Failed("a step trained other samples than the order says")
    return machine.noted({**figures, "checkpoint_at_kill": killed, "resumed_at": starts[-1]})


def _result_of(turn: Turn, command: str, *words: str) -> dict[str, Any]:
    """Run one of this project's commands; returns its result."""
    result = turn.log.with_suffix(".result.json")
    result.unlink(missing_ok=True)
    try:
        turn.command([*_PSEUDOLABEL, command, *words, "--result", str(result)])
    except Failed as failure:
        error = json.loads(result.read_text()).get("error") if result.exists() else None
        raise Failed(f"{command}: {error or failure}") from None
    content: dict[str, Any] = json.loads(result.read_text())
    return content
