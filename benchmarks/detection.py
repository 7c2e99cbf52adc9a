"""Checks that detection can be learnt in minutes: boxes of blood cells and of raccoons, pretrained beside random.

    python -m benchmarks.detection cells --data bccd.tar --epochs 6 --seed 0 --seed 1 --seed 2
    python -m benchmarks.detection raccoon --data raccoon.tar --size 64 --epochs 40 --seed 0 --seed 1 --seed 2

A tar holds photos and an annotation in VOC's XML for each (github.com/Shenggan/BCCD_Dataset and
github.com/datitran/raccoon_dataset); a fifth of the photos is for the test. A small network is pretrained on the others without
their boxes, then it and the same network from random weights learn the boxes; with `--random` it learns from random weights only,
and without Ray. Printed are COCO AP with its standard error and AP50 for each seed, beside the trivial answer's: of each class
one box at the same place in all photos. A command that was interrupted is completed by running the same again; `--data` is needed
the first time only.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from pipeline.recipe import Recipe, parse_recipe
from pipeline.shards.pack import pack
from pipeline.targets import open_targets
from tests.trainers.downstream.images import images_of
from trainers.downstream.labelled import open_labelled
from trainers.downstream.statistics import MOST_IMAGES, remeasure
from trainers.learning.optim import build_optimizer, place
from trainers.networks.precision import autocast


def make(folder: Path, data: Path) -> None:
    """Pack the photos into `folder/shards/train` and `folder/shards/test`."""
    report = pack(str(data), str(folder / "shards"), test=0.2, targets=open_targets(voc=str(data)))
    assert report.test is not None
    print(f"{report.samples} photos to learn from, {report.test.samples} to test on")


def recipe_of(folder: Path, seed: int, epochs: int, size: int) -> Recipe:
    """Pretraining on the photos without boxes, then detection."""
    document: dict[str, Any] = {
        "name": f"seed{seed}",
        "seed": seed,
        "corpus": {"shards": str(folder / "shards/train")},
        "image": {"size": size, "scale": [0.75, 1.0]},
        "tasks": {"rotation": {}, "occlusion": {}},
        "engine": "cpu",
        "training": {
            "backbone": {"name": "shufflenet_v2_x0_5"},
            "batch": 64,
            "epochs": 8,
            "workers": 0,
            "optimizer": {"lr": 2e-3},
        },
        "downstream": {
            "problem": "detection",
            "train": str(folder / "shards/train"),
            "test": str(folder / "shards/test"),
            "batch": 8,
            "epochs": epochs,
            "optimizer": {"lr": 3e-3},
        },
        "storage": {"runs": str(folder / "runs")},
        "failures": {"budget": 0.05},
    }
    return parse_recipe(document)


def learn_alone(recipe: Recipe) -> dict[str, Any]:
    """The row of random weights, on one thread, without Ray."""
    import torch

    torch.set_num_threads(1)
    data = open_labelled(recipe)
    torch.manual_seed(recipe.seed)
    model = place(data.problem.build(data.recipe, data.classes.trained, None), "cpu").train()
    source = data.training()
    optimizer, schedule = build_optimizer(data.spec.optimizer, model, source.schedule.steps, data.spec.batch)
    for batch in images_of(source):
        targets = {name: torch.from_numpy(column) for name, column in batch.targets.items()}
        with autocast("cpu", "auto"):
            outcome = model({"image": batch.image, "weight": torch.ones(len(batch.ids)), **targets})["box"]
        optimizer.zero_grad()
        (outcome.loss / outcome.count).backward()
        optimizer.step()
        schedule.step()
    remeasure({"tuned": model.eval().normalising()}, images_of(data.training_some(MOST_IMAGES)), data.recipe)
    judged = data.problem.judge(
        [data.problem.test(model, images_of(data.testing()), data.recipe, len(data.classes.names))], data.classes
    )
    return {"init": "random", "labels": data.train.samples, "chance": judged.chance, **judged.score}


def learn(folder: Path, recipe: Recipe, alone: bool) -> list[dict[str, Any]]:
    """The rows of one seed, computed once."""
    done = folder / f"{recipe.name}{'-random' if alone else ''}.json"
    if not done.exists() and alone:
        done.write_text(json.dumps([learn_alone(recipe)]))
    if not done.exists():
        from trainers.downstream.finetune import finetune
        from trainers.pretraining import pretrain

        pretrain(recipe)
        done.write_text(json.dumps(finetune(recipe)["downstream"]))
    found: list[dict[str, Any]] = json.loads(done.read_text())
    return found


def main() -> None:
    """Pack the photos, or learn from them and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where shards and runs are")
    parser.add_argument("--data", type=Path, help="tar of photos and VOC's annotations")
    parser.add_argument("--seed", type=int, action="append", default=[])
    parser.add_argument("--epochs", type=int, default=40, help="of fine-tuning")
    parser.add_argument("--random", action="store_true", help="learn from random weights alone")
    parser.add_argument("--size", type=int, default=96, help="side of the photos, pixels")
    parser.add_argument("--picture", type=Path, help="draw predicted boxes of the last seed here")
    given = parser.parse_args()
    if given.data and not (given.folder / "shards").exists():
        make(given.folder, given.data)
    recipes = [recipe_of(given.folder, seed, given.epochs, given.size) for seed in given.seed]
    rows = [learn(given.folder, recipe, given.random) for recipe in recipes]
    for recipe, of_seed in zip(recipes, rows):
        for row in of_seed:
            by_class = ", ".join(f"{name} {100 * ap:.1f}" for name, ap in row["aps"].items())
            ap, trivial = f"{_share(row['ap'])} ± {_share(row['standard_error'])}", f"trivial answer {_share(row['chance'])}"
            ap50 = f"AP50 {_share(row['ap50'])} (trivial answer {_share(row['trivial_ap50'])})"
            print(f"{recipe.name}, {row['labels']} photos, {row['init']}: AP {ap} ({trivial}); {ap50}; {by_class}")
    for row, first in enumerate(rows[0] if len(rows) > 1 else []):
        for measure in ("ap", "ap50"):
            values = [100 * of_seed[row][measure] for of_seed in rows]
            spread = statistics.stdev(values) / len(values) ** 0.5
            print(f"{first['init']}, {measure}: {statistics.fmean(values):.1f} ± {spread:.1f} % over seeds")
    if given.picture:
        from cluster.pictures.boxes import boxed
        from trainers.learning.examples import read_pictures
        from trainers.running.runs import ANSWERS, PRETRAINED, RunFolder

        run = RunFolder(recipes[-1])
        boxed(read_pictures(run.path(ANSWERS), run.read_json(PRETRAINED)["identity"])).save(given.picture, optimize=True)


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


if __name__ == "__main__":
    main()
