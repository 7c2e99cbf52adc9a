"""A render that is killed again and again leaves, byte for byte, what an undisturbed one leaves."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image
from skimage import data

from pipeline.materialize.run import render
from pipeline.materialize.verify import verify
from pipeline.recipe import load_recipe
from pipeline.shards.pack import pack
from tests.pipeline.materialize.storm import Storm, settle

VICTIMS = ["actor"] * 13 + ["raylet"] * 3 + ["SIGKILL"] * 2 + ["SIGTERM"] * 2


@pytest.fixture
def recipe_path(tmp_path: Path) -> Path:
    """Four tasks on 2,400 crops of six photos, 64 to 95 pixels, among them some that are no images, in about 60 shards."""
    photos = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), data.cat(), data.immunohistochemistry()]
    rng = random.Random(0)
    for n in range(2400):
        photo, side = photos[n % len(photos)], rng.randrange(64, 96)
        top, left = rng.randrange(photo.shape[0] - side), rng.randrange(photo.shape[1] - side)
        path = tmp_path / "photos" / f"{n % len(photos)}" / f"{n:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if n % 500 == 250:
            path.write_bytes(b"not an image")
        else:
            Image.fromarray(photo[top : top + side, left : left + side]).save(path, quality=90)
    pack(str(tmp_path / "photos"), str(tmp_path / "shards"), shard_size=160_000)
    recipe = {
        "name": "storm",
        "seed": 5,
        "corpus": {"shards": str(tmp_path / "shards")},
        "image": {"size": 64},
        "tasks": {"rotation": {}, "jigsaw": {"grid": 2, "permutations": 8}, "occlusion": {}, "colorization": {}},
        "placement": {"actors": 2, "cpus": 0.5},
        "render": {"epochs": 2},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path / "recipe.yaml"


def test_twenty_kills_of_actors_nodes_and_driver_change_no_byte(
    recipe_path: Path, tmp_path: Path, tree: Callable[[Path], dict[str, bytes]]
) -> None:
    victims = list(VICTIMS)
    random.Random(11).shuffle(victims)
    render(load_recipe(recipe_path), str(tmp_path / "calm"), here=True)
    calm = tree(tmp_path / "calm")
    storm, rounds = Storm(recipe_path, tmp_path / "driver.log", seed=11), 0
    try:
        while victims:  # a fast machine is done before all are killed, and then renders again
            storm.run(tmp_path / f"stormy-{rounds}", victims, pause=(0.2, 2.5))
            rounds += 1
        settle()
    finally:
        storm.close()
    assert storm.killed.total() == 20, (tmp_path / "driver.log").read_text()
    assert set(storm.killed) == set(VICTIMS)
    for number in range(rounds):
        assert tree(tmp_path / f"stormy-{number}") == calm
    verdict = verify(str(tmp_path / "stormy-0"))
    assert (verdict.problems, verdict.pairs, verdict.quarantined) == ([], 2 * 2395, 5)
