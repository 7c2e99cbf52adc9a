"""Training on a rendered corpus in place of shards and tasks: the same batches, so the same losses to the last bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.materialize.rendered import RenderedSource, for_training
from pipeline.materialize.run import render
from pipeline.ordering.order import Geometry, Schedule
from pipeline.recipe import Recipe
from pipeline.rendering.units import UnitSource
from pipeline.shards.opening import open_corpus
from pipeline.shards.pack import pack
from pipeline.streaming.batches import batches
from tests.tiles import FOUR_TASKS
from trainers.pretraining import pretrain

MakeRecipe = Callable[..., Recipe]
EVERY_LABEL: dict[str, dict] = {
    **FOUR_TASKS,
    "corrupted_region": {},
    "jigsaw_order": {},
    "masked_patches": {},
    "next_pixel": {},
    "quantised_colorization": {},
    "relative_position": {},
    "rotation_angle": {},
    "super_resolution": {},
    "dim": {},
    "near": {"task": "simclr", "views": 3, "small_views": 2, "small_size": 12},
    "far": {"task": "byol", "scale": [0.05, 0.3]},
}
"""Every kind of label, inputs of every shape, and two tasks of views under names of the user's own."""


@pytest.fixture
def shards(tiles: Path, tmp_path: Path) -> Path:
    """The tiles, and four files that are no images."""
    photos = Path(shutil.copytree(tiles.parent / "photos", tmp_path / "photos"))
    for n in range(4):
        (photos / "cat" / f"0{n}x.jpg").write_bytes(b"not an image")
    pack(str(photos), str(tmp_path / "shards"), shard_size=30_000)
    return tmp_path / "shards"


def on(shards: Path, **sections: Any) -> dict[str, Any]:
    return {"corpus": {"shards": str(shards)}, "failures": {"budget": 4}, **sections}


@pytest.mark.parametrize(
    "section", [{"epochs": 2}, {"epochs": 2, "format": "parquet"}, {"epochs": 3, "image": "npy"}], ids=["png", "parquet", "npy"]
)
def test_units_of_a_rendered_corpus_are_those_of_the_original(
    run_recipe: MakeRecipe, shards: Path, tmp_path: Path, section: dict[str, Any]
) -> None:
    recipe = run_recipe(on(shards, tasks=EVERY_LABEL, render=section))
    render(recipe, str(tmp_path / "out"), here=True)
    corpus, geometry = open_corpus(str(shards)), Geometry(16, lanes=8, groups=4, window=2)
    live = UnitSource(recipe, corpus, Schedule(corpus.counts, geometry, recipe.seed, 2))
    own, rendered = for_training(run_recipe({"corpus": {"shards": str(tmp_path / "out")}, "image": {}, "tasks": {}}))
    assert rendered is not None
    there = RenderedSource(own, rendered.corpus(), Schedule(rendered.counts, geometry, own.seed, 2), rendered=rendered)

    def steps(source: UnitSource) -> list:
        make = source.maker(1, lambda stage, unit: None)
        return list(batches(source.schedule, 0, 0, 1, (make(n) for n in range(source.schedule.units()))))

    bad = 0
    for (step, wanted), (_, found) in zip(steps(live), steps(there), strict=True):
        good = wanted["weight"] > 0
        bad += (~good).sum()
        assert found.keys() == wanted.keys(), step
        for name in wanted.keys() - {"seconds", "failure"}:
            assert wanted[name].dtype == found[name].dtype
            whole = name in ("id", "weight", "unit") or wanted[name].ndim > 3  # pixels of what could not be decoded are zeros
            rows = slice(None) if whole else good
            assert np.array_equal(wanted[name][rows], found[name][rows]), (step, name)
        assert [text == "" for text in found["failure"]] == good.tolist()
    assert bad > 0


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_rendered_corpus_trains_to_the_same_losses(run_recipe: MakeRecipe, shards: Path, tmp_path: Path) -> None:
    tasks = {
        **FOUR_TASKS,
        "near": {"task": "swav", "small_size": 12, "objective": {"prototypes": 8, "queue": 24, "queue_from": 0}},
    }
    live = pretrain(run_recipe(on(shards, tasks=tasks), precision="float32"))
    out = tmp_path / "out"
    render(run_recipe(on(shards, tasks=tasks, render={"epochs": 3, "format": "parquet"})), str(out), here=True)
    rendered = pretrain(run_recipe(on(out, name="rendered", image={}, tasks=tasks), precision="float32"))
    assert list(rendered["tasks"]) == list(live["tasks"]) == list(tasks)
    losses = {name: task["loss"] for name, task in rendered["tasks"].items()}
    assert losses == {name: task["loss"] for name, task in live["tasks"].items()}
    assert rendered["quarantined"] == live["quarantined"] == 4


def test_what_was_not_rendered_so_is_refused(run_recipe: MakeRecipe, tiles: Path, tmp_path: Path) -> None:
    render(run_recipe(), str(tmp_path / "out"), here=True)
    corpus = {"corpus": {"shards": str(tmp_path / "out")}}
    with pytest.raises(UserError, match=r"image\.size: 48, but .* was rendered with 32"):
        for_training(run_recipe({**corpus, "image": {"size": 48}}))
    with pytest.raises(UserError, match=r"tasks\.colorization was not rendered; .* holds rotation, jigsaw"):
        for_training(run_recipe({**corpus, "tasks": {"colorization": {}}}))
    with pytest.raises(UserError, match=r"tasks\.rotation was rendered with other parameters"):
        for_training(run_recipe({**corpus, "tasks": {"rotation": {"turns": [0, 2]}}}))
    recipe, _ = for_training(run_recipe({**corpus, "tasks": {"rotation": {"weight": 3}}}))
    assert (list(recipe.tasks), recipe.tasks["rotation"].weight, recipe.image.size) == (["rotation"], 3, 32)
