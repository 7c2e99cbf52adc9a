"""Checks that segmentation can be learnt in minutes: cut-outs pasted on photos, whose masks are exact, pretrained beside random.

    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb stamps
    python -m benchmarks.segmentation scenes --stamps stamps --photos imagenet-sample-250.tar
    python -m benchmarks.segmentation scenes --seed 0 --seed 1 --seed 2 --picture masks.png
    python -m benchmarks.segmentation shapes --shapes --seed 0 --seed 1 --seed 2

The first command makes 640 scenes to learn from and 160 to test on: up to three cut-outs on a photo. A class is a kind of
cut-out. No cut-out and no photo of the test is in the scenes to learn from. The second pretrains a small network on the first
scenes without their masks, fine-tunes it and the same network from random weights, and prints mean IoU and its standard error for
each seed, beside the trivial answer's (the most frequent class, background, everywhere). A command that was interrupted is
completed by running the same again. The third learns discs and squares on two photos from 48 scenes (`tests.scenes`), for 120
steps from random weights without Ray, and tests on 20 others.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import statistics
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.recipe import Recipe, parse_recipe
from pipeline.shards.pack import pack
from pipeline.targets import open_targets
from tests.scenes import packed_scenes
from tests.trainers.downstream.images import images_of
from trainers.downstream.labelled import open_labelled
from trainers.downstream.problem import Judgement

KINDS = {"animals/mammals": 10, "animals/birds": 20, "food": 30, "vehicles": 40, "plants/flowers": 50}
"""Folders of stamps, and the numbers that stand for these classes in masks; 0 is the background."""

SIDE, COUNTS = 96, {"train": 640, "test": 160}
_EDGE, _INSIDE = 24, 160
"""Alpha below which a pixel is background, and from which it is the cut-out; between the two it does not count."""


def cut_outs(folder: Path) -> dict[str, list[tuple[int, Image.Image]]]:
    """RGBA pictures with their class's number, by side: every fifth of each kind is for the test."""
    found: dict[str, list[tuple[int, Image.Image]]] = {"train": [], "test": []}
    (root,) = {path.parent for path in folder.rglob("animals")}
    for kind, number in KINDS.items():
        usable = 0
        for path in sorted((root / kind).rglob("*.png")):
            image = Image.open(path)
            alpha = np.asarray(image.convert("RGBA"))[..., 3]
            if image.mode != "RGBA" or not 0.05 < (alpha > _INSIDE).mean() < 0.95:
                continue
            found["test" if usable % 5 == 4 else "train"].append((number, image.convert("RGBA").crop(image.getbbox())))
            usable += 1
    return found


def photos(source: Path) -> dict[str, list[Image.Image]]:
    """The photos of a tar, by side: every fifth is for the test."""
    with tarfile.open(source) as archive:
        files = [archive.extractfile(member) for member in archive if member.name.lower().endswith((".jpg", ".jpeg"))]
        images = [Image.open(io.BytesIO(file.read())).convert("RGB") for file in files if file is not None]
    return {"train": [image for i, image in enumerate(images) if i % 5 != 4], "test": images[4::5]}


def scene(chance: random.Random, stamps: list[tuple[int, Image.Image]], photo: Image.Image) -> tuple[Image.Image, Image.Image]:
    """A square of the photo with up to three cut-outs on it, and its mask."""
    scale = SIDE * chance.uniform(1.0, 1.6) / min(photo.size)
    resized = photo.resize((max(SIDE, round(photo.width * scale)), max(SIDE, round(photo.height * scale))))
    left, top = chance.randint(0, resized.width - SIDE), chance.randint(0, resized.height - SIDE)
    image, mask = resized.crop((left, top, left + SIDE, top + SIDE)), np.zeros((SIDE, SIDE), np.uint8)
    for number, stamp in chance.sample(stamps, chance.randint(1, 3)):
        longest = SIDE * chance.uniform(0.35, 0.7) / max(stamp.size)
        small = stamp.resize((max(4, round(stamp.width * longest)), max(4, round(stamp.height * longest))))
        if chance.random() < 0.5:
            small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x, y = chance.randint(0, SIDE - small.width), chance.randint(0, SIDE - small.height)
        image.paste(small, (x, y), small)
        alpha, under = np.asarray(small)[..., 3], mask[y : y + small.height, x : x + small.width]
        under[alpha >= _EDGE] = 255
        under[alpha >= _INSIDE] = number
    return image, Image.fromarray(mask)


def make(folder: Path, stamps: Path, source: Path) -> None:
    """Write the scenes, and pack them into `folder/train` and `folder/test`."""
    pictures, backgrounds = cut_outs(stamps), photos(source)
    names = {"0": "background", **{str(number): kind.rpartition("/")[2] for kind, number in KINDS.items()}}
    for side, count in COUNTS.items():
        chance = random.Random(f"scenes {side}")
        for part in ("photos", "masks"):
            (folder / part / side).mkdir(parents=True, exist_ok=True)
        (folder / "masks" / side / "classes.json").write_text(json.dumps(names))
        for i in range(count):
            image, mask = scene(chance, pictures[side], chance.choice(backgrounds[side]))
            image.save(folder / f"photos/{side}/{i:04d}.jpg", quality=92)
            mask.save(folder / f"masks/{side}/{i:04d}.png")
        report = pack(str(folder / "photos" / side), str(folder / side), targets=open_targets(masks=str(folder / "masks" / side)))
        print(f"{side}: {report.samples} scenes of {len(pictures[side])} cut-outs on {len(backgrounds[side])} photos")


def recipe_of(folder: Path, seed: int, epochs: int) -> Recipe:
    """Pretraining on the scenes without masks, then segmentation."""
    document: dict[str, Any] = {
        "name": f"seed{seed}",
        "seed": seed,
        "corpus": {"shards": str(folder / "train")},
        "image": {"size": 48, "scale": [0.4, 1.0]},
        "tasks": {"rotation": {}, "occlusion": {}},
        "engine": "cpu",
        "training": {
            "backbone": {"name": "shufflenet_v2_x0_5", "stem": "small"},
            "batch": 64,
            "epochs": max(1, epochs // 3),
            "workers": 0,
            "optimizer": {"lr": 2e-3},
        },
        "downstream": {
            "problem": "segmentation",
            "train": str(folder / "train"),
            "test": str(folder / "test"),
            "batch": 32,
            "epochs": epochs,
            "optimizer": {"lr": 3e-3},
        },
        "storage": {"runs": str(folder / "runs")},
    }
    return parse_recipe(document)


def learn(folder: Path, seed: int, epochs: int) -> list[dict[str, Any]]:
    """The rows of one seed, computed once."""
    done = folder / f"seed{seed}.json"
    if not done.exists():
        from trainers.downstream.finetune import finetune
        from trainers.pretraining import pretrain

        recipe = recipe_of(folder, seed, epochs)
        pretrain(recipe)
        done.write_text(json.dumps(finetune(recipe)["downstream"]))
    found: list[dict[str, Any]] = json.loads(done.read_text())
    return found


def learn_shapes(folder: Path, seed: int) -> Judgement:
    """Learn the scenes of the tests in some seconds; `folder` is where they are made, once."""
    import torch

    torch.set_num_threads(1)
    for side, first, count in (("train", 0, 48), ("test", 100, 20)):
        if not (folder / side).exists():
            packed_scenes(folder / side, first, count)
    document: dict[str, Any] = {
        "name": "shapes",
        "seed": seed,
        "corpus": {"shards": "-"},
        "image": {"size": 32, "scale": [0.5, 1]},
        "engine": "cpu",
        "training": {"backbone": {"name": "shufflenet_v2_x0_5", "stem": "small"}},
        "downstream": {
            "problem": "segmentation",
            "train": str(folder / "train/shards"),
            "test": str(folder / "test/shards"),
            "batch": 8,
            "epochs": 20,
        },
    }
    data = open_labelled(parse_recipe(document))
    torch.manual_seed(seed)
    model = data.problem.build(data.recipe, data.classes.trained, None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for batch in images_of(data.training()):
        mask, weight = torch.from_numpy(batch.targets["mask"]), torch.ones(len(batch.ids))
        outcome = model({"image": batch.image, "mask": mask, "weight": weight})["mask"]
        optimizer.zero_grad()
        (outcome.loss / outcome.count).backward()
        optimizer.step()
    answers = data.problem.test(model, images_of(data.testing()), data.recipe, len(data.classes.names))
    return data.problem.judge([answers], data.classes)


def main() -> None:
    """Make the scenes, or learn from them and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where scenes and runs are")
    parser.add_argument("--stamps", type=Path, help="unpacked tuxpaint-stamps-default: make the scenes")
    parser.add_argument("--photos", type=Path, help="tar of photos to paste on")
    parser.add_argument("--shapes", action="store_true", help="learn the small scenes of the tests")
    parser.add_argument("--seed", type=int, action="append", default=[])
    parser.add_argument("--epochs", type=int, default=9, help="of fine-tuning; a third as many of pretraining")
    parser.add_argument("--picture", type=Path, help="draw predicted masks of the last seed here")
    given = parser.parse_args()
    if given.stamps:
        make(given.folder, given.stamps, given.photos)
    if given.shapes:
        for seed in given.seed:
            judged = learn_shapes(given.folder, seed)
            spread = f"{100 * judged.score['standard_error']:.1f}"
            print(f"seed {seed}: {100 * judged.score['mean_iou']:.1f} ± {spread} % (trivial answer {100 * judged.chance:.1f} %)")
        return
    by_seed = {seed: learn(given.folder, seed, given.epochs) for seed in given.seed}
    for seed, rows in by_seed.items():
        for row in rows:
            error = f"{100 * row['standard_error']:.1f}"
            print(f"seed {seed}, {row['labels']} masks, {row['init']}: {100 * row['mean_iou']:.1f} ± {error} %", end=" ")
            print(f"(pixels {100 * row['pixel_accuracy']:.1f} %; trivial answer {100 * row['chance']:.1f} %)")
    if len(by_seed) > 1:
        for place, first in enumerate(next(iter(by_seed.values()))):
            values = [100 * rows[place]["mean_iou"] for rows in by_seed.values()]
            spread = statistics.stdev(values) / len(values) ** 0.5
            print(f"{first['labels']} masks, {first['init']}: {statistics.fmean(values):.1f} ± {spread:.1f} % over seeds")
    if given.picture:
        from cluster.pictures.masks import masked
        from trainers.learning.examples import read_pictures
        from trainers.running.runs import ANSWERS, PRETRAINED, RunFolder

        run = RunFolder(recipe_of(given.folder, given.seed[-1], given.epochs))
        masked(read_pictures(run.path(ANSWERS), run.read_json(PRETRAINED)["identity"])).save(given.picture, optimize=True)


if __name__ == "__main__":
    main()
