"""Colours learnt from a corpus are the same each time, occur in it, and can be put into a recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from cluster.cli import app
from cluster.pictures.palette import learn_colours
from pipeline.errors import RunError
from pipeline.recipe import Recipe, parse_recipe
from pipeline.shards.pack import pack


def recipe_of(shards: Path, **sections: object) -> Recipe:
    return parse_recipe({"name": "a", "seed": 1, "corpus": {"shards": str(shards)}, "image": {"size": 32}, **sections})


def test_what_is_learnt_is_the_same_each_time_and_fits_into_a_recipe(tiles: Path) -> None:
    recipe = recipe_of(tiles, training={"batch": 24})
    learnt = learn_colours(recipe, colours=16)
    assert learnt == learn_colours(recipe, colours=16)
    assert len(learnt["next_pixel"]["palette"]) == 16
    assert abs(sum(learnt["quantised_colorization"]["shares"]) - 1) < 1e-4
    recipe_of(tiles, tasks=learnt)


def test_the_palette_is_that_of_the_pictures(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    colours = [(10, 20, 30), (200, 40, 60), (90, 180, 90), (250, 250, 240)]
    for i, colour in enumerate(colours):
        Image.new("RGB", (40, 40), colour).save(tmp_path / "photos" / f"{i}.png")
    pack(str(tmp_path / "photos"), str(tmp_path / "shards"), labels="none")
    recipe = recipe_of(tmp_path / "shards", training={"batch": 4})
    learnt = learn_colours(recipe, colours=4)
    assert sorted(map(tuple, learnt["next_pixel"]["palette"])) == sorted(colours)
    shares = np.array(learnt["quantised_colorization"]["shares"])
    assert sorted(shares[shares > 0]) == [0.25] * 4 or shares.max() in (0.5, 0.75)  # two of them may be of one square
    with pytest.raises(RunError, match="4 different colours, fewer than 5"):
        learn_colours(recipe, colours=5)


def test_the_command_writes_a_part_of_a_recipe(tiles: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "a", "seed": 1, "corpus": {"shards": str(tiles)}, "training": {"batch": 24}}))
    done = CliRunner().invoke(app, ["colours", str(path), "--count", "8"])
    assert done.exit_code == 0, done.output
    recipe_of(tiles, **yaml.safe_load(done.stdout))
