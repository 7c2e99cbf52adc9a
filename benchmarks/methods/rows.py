"""The rows of the comparison: tasks, crop and optimizer of each, on one network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.recipe import Recipe, parse_recipe

MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
"""Of CIFAR-10's pixels."""

HALF = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "blur": 0}
"""Views for CIFAR-10 (Chen et al. 2020, appendix B.9): colours changed at half strength, no blur."""

SGD = {"name": "sgd", "lr": 0.06, "weight_decay": 5e-4}
"""That of lightly's benchmark on CIFAR-10, for a batch of 128."""


@dataclass(frozen=True)
class Row:
    """A row.

    Args:
        tasks: the recipe's tasks; none for random weights.
        scale: share of the photo's area that the common crop covers, which views do not use.
        optimizer: the recipe's optimizer section.
        repeats: the row whose method lightly trains here, for as many steps; None if we train, and processor time ends it.
    """

    tasks: dict[str, dict[str, Any]]
    scale: tuple[float, float] = (0.5, 1.0)
    optimizer: dict[str, Any] = field(default_factory=lambda: SGD)
    repeats: str | None = None


def _views(name: str, objective: dict[str, Any] | None = None, **changes: Any) -> Row:
    return Row({name: {**HALF, **changes, "objective": {"name": name, **(objective or {})}}})


ADAMW = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05}
_SMALLER = {"small_views": 0}  # 32 pixels leave no room for views of 14

ROWS = {
    "random": Row({}),
    "rotation": Row({"rotation": {}}),
    "four_pretext": Row(
        {"rotation": {}, "jigsaw": {"permutations": 24, "weight": 0.5}, "occlusion": {}, "colorization": {}}, (0.4, 1.0), ADAMW
    ),
    "simclr": _views("simclr", {"temperature": 0.5}),
    "moco": _views("moco", {"temperature": 0.1, "momentum": 0.99, "queue": 4096}),
    "byol": _views("byol", {"momentum": 0.99}, solarise=0, saturation=0.2),
    "simsiam": _views("simsiam"),
    "barlow_twins": _views("barlow_twins", solarise=0, saturation=0.2),
    "vicreg": _views("vicreg", solarise=0, saturation=0.2),
    "swav": _views("swav", **_SMALLER),
    "dino": _views("dino", {"momentum": 0.99, "outputs": 2048}, solarise=0, saturation=0.2, **_SMALLER),
    "dim": Row({"dim": {}}, optimizer=ADAMW),
    "amdim": Row({"amdim": {**HALF}}, optimizer=ADAMW),
}
LIGHTLY = {
    f"lightly_{name}": Row({}, optimizer=ROWS[name].optimizer, repeats=name) for name in ("simclr", "moco", "byol", "swav")
}
ROWS = {**ROWS, **LIGHTLY}


@dataclass(frozen=True)
class Setting:
    """What is the same for all rows.

    Args:
        train: shards to learn from; their labels are used for the probes only.
        test: labelled shards to test on.
        minutes: processor minutes of each training.
        backbone: the network, by the name that a recipe gives it.
        stem: its first layers, as in a recipe.
        batch: samples of a step.
        precision: of our training, as in a recipe; lightly's plain loop computes in float32.
        labels: share of the training labels that probes use.
        tested: share of the test images.
        threads: of torch.
        curve: how many times kNN is measured during a training.
    """

    train: str
    test: str
    minutes: float
    backbone: str
    stem: str
    batch: int
    precision: str
    labels: float
    tested: float
    threads: int
    curve: int


def recipe_of(row: Row, setting: Setting, seed: int) -> Recipe:
    """The recipe of a row."""
    return parse_recipe(
        {
            "name": "methods",
            "seed": seed,
            "corpus": {"shards": setting.train},
            "image": {"size": 32, "scale": list(row.scale), "mean": MEAN, "std": STD},
            "tasks": row.tasks,
            "engine": "cpu",
            "placement": {"threads": 1},
            "training": {
                "backbone": {"name": setting.backbone, "stem": setting.stem},
                "batch": setting.batch,
                "epochs": 1000,
                "precision": setting.precision,
                "optimizer": row.optimizer,
            },
            "downstream": {"train": setting.train, "test": setting.test, "labels": setting.labels},
        }
    )
