"""A small labelled corpus of real photos, and recipes on it that train in seconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from skimage import data

from pipeline.recipe import Recipe, parse_recipe
from pipeline.shards.pack import pack

TILES = 24
FOUR_TASKS: dict[str, Any] = {
    "rotation": {},
    "jigsaw": {"grid": 2, "permutations": 8},
    "occlusion": {},
    "colorization": {},
}
"""A label of each kind that most of the code tells apart: classes, and pixels with and without a mask."""


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 72 tiles of three photos, 40 x 40 pixels, a class a photo."""
    root = tmp_path_factory.mktemp("tiles")
    for name, photo in {"cat": data.chelsea(), "coffee": data.coffee(), "rocket": data.rocket()}.items():
        (root / "photos" / name).mkdir(parents=True)
        for n in range(TILES):
            left, top = 12 * n, 9 * n
            Image.fromarray(photo[top : top + 40, left : left + 40]).save(root / "photos" / name / f"{n:03d}.jpg", quality=95)
    pack(str(root / "photos"), str(root / "shards"), shard_size=30_000)
    return root / "shards"


def recipe_on(tiles: Path | str, runs: Path, sections: dict[str, Any], training: dict[str, Any]) -> Recipe:
    """Rotation and jigsaw on the tiles, three epochs of four steps in this process, with the given changes."""
    document: dict[str, Any] = {
        "name": "run",
        "seed": 3,
        "corpus": {"shards": str(tiles)},
        "image": {"size": 32},
        "tasks": {"rotation": {}, "jigsaw": {"grid": 2, "permutations": 8}},
        "placement": {"cpus": 0.5},
        "training": {
            "backbone": {"name": "shufflenet_v2_x0_5", "stem": "standard"},
            "batch": 16,
            "epochs": 3,
            "log_steps": 1,
            "order": {"window": 2, "groups": 4},
            "workers": 0,
            **training,
        },
        "storage": {"runs": str(runs)},
    }
    return parse_recipe({**document, **sections})


@pytest.fixture
def run_recipe(tiles: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """`run_recipe({section: ...}, **training)`: see `recipe_on`; the runs are the test's own."""
    return lambda sections=None, **training: recipe_on(tiles, tmp_path / "runs", sections or {}, training)


@dataclass(frozen=True)
class Finished:
    """A pretraining that is over.

    Args:
        recipe: what was run; it keeps a ledger.
        result: what `pretrain` returned.
        killed: the folder of its runs as it was after the last step, with a checkpoint of each of the last three.
        training: what makes a recipe of `run_recipe` the same, in its section `training`.
    """

    recipe: Recipe
    result: dict[str, Any]
    killed: Path
    training: dict[str, Any]

    def copied(self, folder: Path, killed: bool = False) -> None:
        """Put a copy of its folder, at the end or as of when it was `killed`, where recipes of `run_recipe` look for it."""
        shutil.copytree(self.killed if killed else self.recipe.storage.runs, folder / "runs")


@pytest.fixture(scope="session")
def calm(local_ray: None, tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """An undisturbed run in this process with one actor, 48 steps, to compare others with. Read-only.

    Its command is interrupted after the last step and run again, as a user would do.
    """
    from trainers.pretraining import pretrain

    def interrupt(record: dict[str, Any]) -> None:
        if record["step"] == 48:
            raise KeyboardInterrupt

    training = {"epochs": 12, "checkpoint_epochs": 0.25, "keep": 3}
    runs, killed = tmp_path_factory.mktemp("calm"), tmp_path_factory.mktemp("killed") / "runs"
    recipe = recipe_on(tiles, runs, {"tracking": {"samples": True}}, training)
    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, [interrupt])
    shutil.copytree(runs, killed)
    return Finished(recipe, pretrain(recipe), killed, training)
