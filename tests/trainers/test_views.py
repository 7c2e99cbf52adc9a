"""Methods that compare views, in real runs: they learn, go on where they were killed, and say so when they collapse."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from skimage import data

from pipeline.recipe import Recipe
from pipeline.shards.writing import TarWriter
from trainers.learning.collapse import Collapsed
from trainers.learning.loop import TrainingJob, summary, train
from trainers.learning.pretext import PretextModel
from trainers.pretraining import prepared, pretrain
from trainers.running.fit import fit
from trainers.running.run_log import Record, open_run_log
from trainers.running.runs import RunFolder

pytestmark = pytest.mark.usefixtures("local_ray")

MakeRecipe = Callable[..., Recipe]

TRAINING = {
    "backbone": {"name": "resnet10", "stem": "standard"},
    "checkpoint_epochs": 0.25,
    "epochs": 6,
    "precision": "float32",
    "keep": 24,
}
TASKS = {
    "simclr": {"scale": [0.4, 1], "objective": {"temperature": 0.2, "width": 32}},
    "queue": {"task": "moco", "objective": {"queue": 40, "width": 32, "momentum": 0.9}},
    "centre": {"task": "dino", "small_views": 0, "objective": {"outputs": 24, "hidden": 32, "width": 16, "momentum": 0.9}},
    "rotation": {"weight": 0.5},
    "sure": {"task": "fixmatch", "classes": 3, "objective": {"threshold": 0.0}},
    "adversary": {"task": "super_resolution", "objective": {"name": "adversarial", "width": 8, "weight": 0.01}},
}


def loading(recipe: Recipe, folder: str) -> PretextModel:
    """The network of a run, which writes what it loads from a checkpoint to a folder, a file a rank."""
    model = PretextModel(recipe, recipe.seed)
    model.register_load_state_dict_post_hook(lambda module, _: torch.save(module.state_dict(), f"{folder}/{os.getpid()}.pt"))
    return model


def job_of(recipe: Recipe, loaded: Path | None = None) -> TrainingJob:
    """The pretraining of a recipe; ranks write to `loaded` what they load."""
    recipe, source, _ = prepared(recipe)
    return TrainingJob(
        stage="pretrain",
        folder=RunFolder(recipe).checkpoints("pretrain"),
        source=source,
        build=partial(loading, recipe, str(loaded)),
        objectives=tuple(TASKS),
        optimizer=recipe.training.optimizer,
        run_log=open_run_log(),
    )


def work(config: dict[str, Any]) -> None:
    train(config["job"])


@pytest.mark.parametrize("epochs", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_views_are_learnt_beside_a_pretext_task_and_a_killed_run_goes_on_as_it_was_on_any_number_of_workers(
    run_recipe: MakeRecipe, tmp_path: Path, epochs: int
) -> None:
    """In two epochs by two workers; in six also by one, and until views are told apart better than by chance."""
    steps = 4 * epochs

    def interrupt(record: Record) -> None:
        if record["step"] == steps:
            raise KeyboardInterrupt

    corpus = {"shards": run_recipe().corpus.shards, "labelled": {"share": 0.5, "batch": 0.25}}

    def made(runs: str, **training: Any) -> Recipe:
        sections = {"corpus": corpus, "tasks": TASKS, "storage": {"runs": str(tmp_path / runs)}}
        return run_recipe(sections, **{**TRAINING, "epochs": epochs}, **training)

    with pytest.raises(KeyboardInterrupt):
        pretrain(made("calm"), [interrupt])  # after the last step, when all checkpoints are still there
    for runs in ("one", "two") if epochs == 6 else ("two",):  # killed half way
        shutil.copytree(tmp_path / "calm", tmp_path / runs)
        checkpoints = sorted(Path(RunFolder(made(runs)).checkpoints("pretrain")).glob("step-*"))
        assert len(checkpoints) == steps
        for later in checkpoints[steps // 2 :]:
            later.unlink()
    calm = summary(job_of(made("calm")).state())
    simclr = calm["tasks"]["simclr"]
    assert simclr["trivial"] == pytest.approx(1 / 16)
    assert 1 < simclr["also"]["effective_rank"] <= 16

    if epochs == 6:
        assert sum(simclr["metrics"][-8:]) / 8 > 0.13  # 128 samples: three standard errors above chance
        assert simclr["also"]["feature_std"] > 0.3
        again = pretrain(made("one"))
        assert "training goes on from step 12 of 24" in again["events"][0]["what"]
        for name in TASKS:
            assert again["tasks"][name]["loss"] == calm["tasks"][name]["loss"], name

    loaded = tmp_path / "loaded"
    loaded.mkdir()
    job = job_of(made("two", workers=2), loaded)
    saved = job.checkpoints().load(job.checkpoints().newest())
    fit(work, {"job": job}, job.source.recipe, "pretrain", job.run_log, [])
    states = [torch.load(file, weights_only=True) for file in loaded.iterdir()]
    assert (saved["step"], len(states)) == (steps // 2, 2)
    kept = ("queue.queue", "centre.centre", "adversary.discriminator.last.singular")
    assert all(saved["model"][f"objectives.{name}"].any() for name in kept)
    for state in states:
        assert state.keys() == saved["model"].keys()
        assert all(torch.equal(value, saved["model"][name]) for name, value in state.items())
    found = summary(job.state())
    for name in TASKS:
        assert found["tasks"][name]["loss"] == pytest.approx(calm["tasks"][name]["loss"], rel=1e-3), name


@pytest.mark.slow
def test_a_corpus_of_copies_of_one_photo_ends_the_run_in_words(run_recipe: MakeRecipe, tmp_path: Path) -> None:
    encoded = io.BytesIO()
    Image.fromarray(data.chelsea()[100:140, 100:140]).save(encoded, "JPEG")
    with (tmp_path / "shard-0.tar").open("wb") as file:
        tar = TarWriter(file)
        for n in range(72):
            tar.add(f"{n:05d}.jpg", encoded.getvalue())
        tar.finish()
    sections = {"corpus": {"shards": str(tmp_path / "shard-0.tar")}, "tasks": {"simclr": {"objective": {"width": 32}}}}
    with pytest.raises(Collapsed, match=r"simclr has collapsed: .* by chance 6\.25%; if many photos .* are copies"):
        pretrain(run_recipe(sections, **{**TRAINING, "epochs": 12}))
