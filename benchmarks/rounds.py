"""Rounds of clustering beside rotation on CIFAR-10 at equal processor time; and a teacher's labels beside 1 % of labels alone.

    python -m benchmarks.rounds TRAIN TEST --minutes 2 --seeds 2 [--only rotation,deepcluster] [--rates]

TRAIN and TEST are packed shards. Each row has as many minutes of processor time, features and clusters included; all start from
the same random weights. `clusterfit` gives a third of them to rotation, and clusters its features, and the rest to a new network.
The number of steps follows from the time of a step and of a labelling of the whole corpus, which `--rates` measures once, on idle
cores. `alone` fine-tunes rotation's network on 1 % of the labels; `teacher` lets that network name all images, trains the same
start on the names of which it is certain, and fine-tunes it on the same 1 %; `longer` trains rotation for as many more steps
instead.

Leaves `OUT/rates.json`, a file a run, and `OUT/rounds.md`. Runs that are there are not made again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.methods.ours import stream
from benchmarks.methods.probes import Probes
from benchmarks.methods.rows import ROWS, SGD, Setting, recipe_of
from benchmarks.plain import trained_plainly
from pipeline.draws import hash64
from pipeline.recipe import Recipe
from pipeline.streaming.memory import keep_memory
from trainers.downstream.labelled import open_labelled
from trainers.downstream.passes import usable
from trainers.downstream.statistics import MOST_IMAGES, remeasure
from trainers.labelling.label import label
from trainers.labelling.rounds import Round, rounds
from trainers.learning.gradients import accumulate
from trainers.learning.optim import place
from trainers.learning.update import Update
from trainers.networks.backbones import build_backbone
from trainers.running.runs import BACKBONE, CLASSIFIER, RunFolder

METHODS = {
    "deepcluster": {"method": "deepcluster", "clusters": 128, "count": 2},
    "selflabel": {"method": "selflabel", "clusters": 128, "count": 2},
    "clusterfit": {"method": "clusterfit", "clusters": 128, "count": 1},
}
ORDER = ("random", "rotation", *METHODS, "alone", "teacher", "longer")
_TEACHER = 1 / 3  # of clusterfit's time
_CERTAIN = 0.9
_FEW = {"labels": 0.01, "epochs": 40, "batch": 64, "optimizer": {"name": "sgd", "lr": 0.02, "weight_decay": 5e-4}}


class Bench:
    """The runs of the comparison.

    Args:
        setting: what is the same for all.
        out: where results go.
        folder: where runs go; they are removed when they are measured, but for rotation's.
    """

    def __init__(self, setting: Setting, out: Path, folder: Path) -> None:
        self.setting, self._out, self._folder = setting, out, folder
        self._rates = out / "rates.json"

    def recipe(self, name: str, seed: int, **sections: Any) -> Recipe:
        """A recipe whose run lies in a folder of that name."""
        document = recipe_of(ROWS["rotation"], self.setting, seed).model_dump(mode="json")
        document |= {"name": f"{name}-{seed}", "storage": {"runs": str(self._folder)}, **sections}
        document["training"]["optimizer"] = SGD
        return Recipe.model_validate(document)

    def rates(self) -> dict[str, float]:
        """Processor seconds of a step and of each method's labelling of the whole corpus."""
        if self._rates.exists():
            found: dict[str, float] = json.loads(self._rates.read_text())
            return found
        trained_plainly(self.recipe("rate", 0), steps=5)  # the first steps allocate and choose kernels
        found = {"step": _cpu(lambda: trained_plainly(self.recipe("rate", 0), steps=60)) / 60}
        for name in ("deepcluster", "selflabel"):
            one = Round(self.recipe("rate", 0, tasks={}, rounds=METHODS[name]), 0)
            found[name] = _cpu(lambda: one.label(here=True))  # noqa: B023
            shutil.rmtree(RunFolder(one.whole).url)
        found["clusterfit"] = found["deepcluster"]
        self._rates.write_text(json.dumps(found))
        return found

    def trained(self, name: str, seed: int) -> tuple[Recipe, dict[str, Any]]:
        """Train a row; returns its recipe, whose folder holds its backbone, and what was done."""
        rates, budget = self.rates(), 60 * self.setting.minutes
        if name == "rotation":
            recipe, steps = self.recipe(name, seed), round(budget / rates["step"])
            return recipe, {"cpu": _cpu(lambda: trained_plainly(recipe, steps=steps)), "steps": steps}
        spec, cpu = dict(METHODS[name]), 0.0
        if name == "clusterfit":
            first = self.recipe("teacher", seed)
            cpu = _cpu(lambda: trained_plainly(first, steps=round(_TEACHER * budget / rates["step"])))
            spec["run"], budget = RunFolder(first).url, (1 - _TEACHER) * budget
        steps = round((budget / spec["count"] - rates[name]) / rates["step"])
        recipe, told = self.recipe(name, seed, tasks={}, rounds=spec), {}
        cpu += _cpu(lambda: told.update(rounds(recipe, train=partial(trained_plainly, steps=steps), here=True)))
        return recipe, {"cpu": cpu, "steps": steps * spec["count"], "rounds": told["rounds"]}

    def probed(self, name: str, seed: int) -> dict[str, Any]:
        """Train a row and probe its features."""
        recipe = self.recipe(name, seed)
        about: dict[str, Any] = {}
        if name != "random":
            recipe, about = self.trained(name, seed)
        backbone = build_backbone(recipe.training.backbone, 32, seed, ("vector",))
        if name != "random":
            backbone.load(RunFolder(recipe).read_weights(BACKBONE)["backbone"])
        if name != "rotation":  # on which `alone` and `teacher` build
            shutil.rmtree(RunFolder(recipe).url, ignore_errors=True)
        return {**about, "accuracies": Probes(recipe_of(ROWS["random"], self.setting, 0), self.setting)(backbone)}

    def few(self, name: str, seed: int) -> dict[str, Any]:
        """Fine-tune on few labels, after what the row does first with rotation's network."""
        start = self.recipe("rotation", seed, downstream={**self._labelled(), **_FEW})
        weights = RunFolder(start).path(BACKBONE)
        network = {**start.training.backbone.architecture(), "weights": weights}
        steps = round(30 * self.setting.minutes / self.rates()["step"])
        training = {**start.training.model_dump(mode="json"), "backbone": network}
        about: dict[str, Any] = {}
        if name == "longer":
            longer = self.recipe(name, seed, training=training)
            trained_plainly(longer, steps=steps)
            weights, about = RunFolder(longer).path(BACKBONE), {"steps": steps}
        if name == "teacher":
            finetuned(start, weights)
            table = str(self._folder / f"named-{seed}")
            _, found = label(start, table, here=True)
            tables = {"named": {"table": table, "least": {"confidence": _CERTAIN}}}
            corpus, tasks = (
                {"shards": self.setting.train, "annotations": tables},
                {"assigned": {"annotation": "named", "classes": 10}},
            )
            student = self.recipe(name, seed, training=training, corpus=corpus, tasks=tasks)
            trained_plainly(student, steps=steps)
            weights = RunFolder(student).path(BACKBONE)
            about = {
                "steps": steps,
                "certain": found["reached"][str(_CERTAIN)] / found["images"],
                "right": found["labels"]["purity"],
            }
        return {**about, "accuracies": {"fine-tuned": finetuned(start, weights)}}

    def _labelled(self) -> dict[str, str]:
        return {"train": self.setting.train, "test": self.setting.test}


def finetuned(recipe: Recipe, weights: str) -> float:
    """Fine-tune weights on the recipe's share of labels; leaves the classifier in its run's folder, and returns its accuracy."""
    data = open_labelled(recipe)
    saved = torch.load(weights, weights_only=True)
    model: Any = data.problem.build(data.recipe, data.classes.trained, saved["backbone"])
    place(model, "cpu").train()
    source, batch = data.training(), data.spec.batch
    update = Update(model, data.spec.optimizer, source.schedule.steps, batch)
    for step, columns in enumerate(stream(source)):
        torch.manual_seed(hash64("network", recipe.seed, step, 0))
        update.begin(step)
        accumulate(model, (data.problem.objective,), columns, batch, recipe.training.precision, 1)
        update.finish()
    model.eval()
    some = (usable(columns, torch.device("cpu")) for columns in stream(data.training_some(MOST_IMAGES)))
    remeasure({"tuned": model.normalising()}, some, recipe)
    folder = RunFolder(recipe)
    folder.make()
    folder.write_weights(CLASSIFIER, {"classifier": model.state_dict(), "classes": list(data.classes.names)})
    right = total = 0
    with torch.inference_mode():
        for columns in stream(data.testing()):
            image, labels = torch.from_numpy(columns["image"]), torch.from_numpy(columns["class"])
            there = torch.from_numpy(columns["weight"]) > 0
            right += int((model.logits(image).argmax(1) == labels)[there].sum())
            total += int(there.sum())
    return right / total


def _cpu(work: Any) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def markdown(records: dict[str, list[dict[str, Any]]], setting: Setting) -> str:
    """Means of the seeds, with their standard deviations; and what clusters tell of the classes, round after round."""
    lines = [f"{setting}", ""]
    for name, runs in records.items():
        measures = ", ".join(f"{one} {_percent([run['accuracies'][one] for run in runs])}" for one in runs[0]["accuracies"])
        cpu = f", {statistics.mean(run['cpu'] for run in runs) / 60:.2f} CPU minutes" if "cpu" in runs[0] else ""
        steps = f", {runs[0]['steps']:,} steps" if "steps" in runs[0] else ""
        lines.append(f"- {name}, {len(runs)} seeds{steps}{cpu}: {measures}")
        for run in runs:
            for line in run.get("rounds", []):
                lines.append(
                    f"  - seed {run['seed']}, round {line['round']}: {json.dumps(line['figures'])} {json.dumps(line['tasks'])}"
                )
            if "certain" in run:
                lines.append(f"  - seed {run['seed']}: {run['certain']:.1%} of the names are certain")
    return "\n".join(lines)


def _percent(values: list[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread} %"


def main() -> None:
    """Make the runs that are missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", default=",".join(ORDER))
    parser.add_argument("--rates", action="store_true", help="measure only how long steps and labellings take")
    parser.add_argument("--tested", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=Path("runs/rounds"))
    parser.add_argument("--folder", type=Path, default=Path(".bench/rounds"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    setting = Setting(given.train, given.test, given.minutes, "resnet10", "standard", 128, "auto", 0.2, given.tested, 1, 0)
    given.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(setting, given.out, given.folder)
    print(bench.rates(), flush=True)
    for seed in range(0 if given.rates else given.seeds):
        for name in given.only.split(","):
            path = given.out / f"{name}-{seed}.json"
            if not path.exists():
                work = bench.few if name in ("alone", "teacher", "longer") else bench.probed
                path.write_text(json.dumps({"seed": seed, **work(name, seed)}))
                print(name, seed, path.read_text(), flush=True)
    files = {name: [given.out / f"{name}-{seed}.json" for seed in range(given.seeds)] for name in ORDER}
    found = {name: [json.loads(path.read_text()) for path in paths if path.exists()] for name, paths in files.items()}
    text = markdown({name: runs for name, runs in found.items() if runs}, setting)
    (given.out / "rounds.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
