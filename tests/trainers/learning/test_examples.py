"""Pictures of what a network does: answers where they are images, and neighbours by its features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.recipe import Recipe
from trainers.learning.answers import figures
from trainers.learning.examples import (
    NEIGHBOURS,
    SHOWN,
    example_columns,
    example_figures,
    example_pictures,
    read_pictures,
    write_pictures,
)
from trainers.learning.pretext import PretextModel
from trainers.objectives.pixels import PixelsObjective, chroma, coloured
from trainers.pretraining import leave_pictures, prepared
from trainers.running.runs import RunFolder

Columns = dict[str, Tensor]


def test_a_hole_is_shown_in_its_surroundings_and_colours_at_the_photos_brightness(
    recipe: Callable[..., Recipe], columns: Callable[[int, int], Columns]
) -> None:
    batch, model = columns(4, 32), PretextModel(recipe("occlusion", "colorization"), seed=1)
    whole = batch["image"].permute(0, 3, 1, 2).float() / 255
    for name, exact in (("occlusion", None), ("colorization", chroma(whole) / 0.06)):
        objective = model.objectives[name]
        assert isinstance(objective, PixelsObjective)
        if exact is None:
            trivial, unit = objective._trivial(whole, batch["occlusion.input"], batch["occlusion.mask"].unsqueeze(1).float())
            exact = (whole - trivial) / unit
            painted = objective.shown(exact + 1, batch, name)
            outside = (batch["occlusion.mask"] == 0).unsqueeze(1).expand_as(whole)
            assert torch.equal(painted[outside], whole[outside])
            assert not torch.allclose(painted, whole, atol=0.05)
        torch.testing.assert_close(objective.shown(exact, batch, name), whole, atol=2e-3, rtol=0)
    torch.testing.assert_close(coloured(whole, chroma(whole)), whole, atol=1e-5, rtol=0)
    grey = coloured(whole, torch.zeros_like(whole[:, :2]))
    torch.testing.assert_close(grey[:, 0], grey[:, 2])


def test_each_task_with_an_image_for_an_answer_has_its_pictures_and_each_photo_its_neighbours(
    recipe: Callable[..., Recipe], columns: Callable[[int, int], Columns]
) -> None:
    batch = {name: column.numpy() for name, column in columns(16, 32).items()}
    batch["image"] = batch["image"].copy()
    batch["image"][9] = batch["image"][0]  # a copy is the nearest of all
    model = PretextModel(recipe("rotation", "occlusion", "colorization"), seed=1)
    pictures = example_pictures(model, batch)
    painted = {f"{task}.{part}" for task in ("colorization", "occlusion") for part in ("answer", "input", "target")}
    assert set(pictures) == painted | {"neighbours"}
    assert all(picture.dtype == np.uint8 for picture in pictures.values())
    assert pictures["occlusion.answer"].shape == pictures["occlusion.target"].shape == (SHOWN, 32, 32, 3)
    chosen = [0, 3, 6, 9, 12, 15]  # from all over the batch
    assert np.array_equal(pictures["occlusion.target"], batch["image"][chosen])
    assert np.array_equal(pictures["colorization.input"], batch["colorization.input"][chosen])
    near = pictures["neighbours"]
    assert near.shape == (SHOWN, 1 + NEIGHBOURS, 32, 32, 3)
    assert np.array_equal(near[0, 0], batch["image"][0])
    assert np.array_equal(near[0, 1], batch["image"][9])
    assert not any(np.array_equal(near[0, 0], other) for other in near[0, 2:])  # a photo is no neighbour of its own


def test_an_answer_before_the_adversary_is_shown_and_measured_beside(
    recipe: Callable[..., Recipe], columns: Callable[[int, int], Columns]
) -> None:
    batch = {name: column.numpy() for name, column in columns(24, 32).items()}
    task = ("colorization", {"objective": {"name": "adversarial", "width": 8}})
    model = PretextModel(recipe("occlusion", task), seed=1)
    pictures, found = example_pictures(model, batch), example_figures(model, batch)
    assert {name for name in pictures if name.endswith(".before")} == {"colorization.before"}
    assert pictures["colorization.before"].shape == (SHOWN, 32, 32, 3)
    assert {name: sorted(parts) for name, parts in found.items()} == {
        "colorization": ["answer", "before"],
        "occlusion": ["answer"],
    }
    assert found["colorization"]["answer"] == found["colorization"]["before"]  # nothing has been learnt yet
    whole = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2) / 255
    grey = coloured(whole, torch.zeros_like(whole[:, :2])).clamp(0, 1)
    assert found["colorization"]["answer"] == pytest.approx(figures(grey, whole))  # of all photos, in parts


def test_photos_come_from_all_over_the_corpus_and_are_the_same_each_time(run_recipe: Callable[..., Recipe]) -> None:
    _, source, model = prepared(run_recipe({"tasks": {"rotation": {}, "occlusion": {}}}))
    columns, again = (example_columns(replace(source, image=False)) for _ in range(2))
    assert columns["image"].shape == (72, 32, 32, 3)
    assert len(np.unique(columns["id"])) == 72
    assert columns["weight"].all()
    assert all(np.array_equal(columns[name], again[name]) for name in ("image", "occlusion.input"))
    pictures, repeated = (example_pictures(model, each) for each in (columns, again))
    assert pictures["neighbours"].shape == (SHOWN, 1 + NEIGHBOURS, 32, 32, 3)
    assert all(np.array_equal(pictures[name], repeated[name]) for name in pictures)


def test_photos_of_all_corpora_of_a_mixture_are_shown(run_recipe: Callable[..., Recipe], tiles: Path) -> None:
    mix = {name: {"shards": str(tiles)} for name in ("a", "b")}
    _, source, _ = prepared(run_recipe({"corpus": {"mix": mix}}))
    assert set(example_columns(source)["corpus"].tolist()) == {0, 1}


def test_pictures_of_another_run_are_not_read(tmp_path: Path) -> None:
    url, pictures = str(tmp_path / "examples.npz"), {"neighbours": np.zeros((1, 2, 4, 4, 3), np.uint8)}
    assert read_pictures(url, "a") == {}
    write_pictures(url, pictures, "a")
    assert np.array_equal(read_pictures(url, "a")["neighbours"], pictures["neighbours"])
    assert read_pictures(url, "b") == {}


def test_what_a_pretraining_leaves_is_read_by_its_identity_and_a_corpus_that_is_gone_costs_the_pictures_only(
    run_recipe: Callable[..., Recipe], caplog: pytest.LogCaptureFixture
) -> None:
    recipe = run_recipe()
    _, source, model = prepared(recipe)
    folder = RunFolder(recipe)
    folder.make()
    leave_pictures(model, source, folder, "x")
    assert list(read_pictures(folder.path("examples.npz"), "x")) == ["neighbours"]
    gone = replace(source, corpus=replace(source.corpus, urls=[f"{url}.gone" for url in source.corpus.urls]))
    leave_pictures(model, gone, folder, "y")
    assert "there are no pictures of what was learnt" in caplog.text


@pytest.mark.usefixtures("local_ray")
def test_a_pretraining_leaves_its_pictures(calm) -> None:
    folder = RunFolder(calm.recipe)
    assert list(read_pictures(folder.path("examples.npz"), folder.identity("pretrain"))) == ["neighbours"]
