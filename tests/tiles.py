"""A small labelled corpus of real photos, and recipes on it that train in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from skimage import data

from pipeline.recipe import Recipe, parse_recipe
from pipeline.shards.pack import pack

TILES = 24


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


@pytest.fixture
def run_recipe(tiles: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """`run_recipe(**training)`: rotation and occlusion on the tiles, three epochs of four steps."""

    def make(sections: dict[str, Any] | None = None, **training: Any) -> Recipe:
        document: dict[str, Any] = {
            "name": "run",
            "seed": 3,
            "corpus": {"shards": str(tiles)},
            "image": {"size": 32},
            "tasks": {"rotation": {}, "occlusion": {}},
            "placement": {"cpus": 0.5},
            "training": {
                "backbone": {"name": "resnet10", "stem": "standard"},
                "batch": 16,
                "epochs": 3,
                "log_steps": 1,
                "order": {"window": 2, "groups": 4},
                **training,
            },
            "storage": {"runs": str(tmp_path / "runs")},
        }
        return parse_recipe({**document, **(sections or {})})

    return make
