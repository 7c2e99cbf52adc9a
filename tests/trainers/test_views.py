"""Methods that compare views, in real runs: they learn, go on where they were killed, and say so when they collapse."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

from pipeline.recipe import Recipe
from pipeline.shards.writing import TarWriter
from trainers.learning.collapse import Collapsed
from trainers.pretraining import pretrain
from trainers.running.run_log import Record

pytestmark = pytest.mark.usefixtures("local_ray")

MakeRecipe = Callable[..., Recipe]

TRAINING = {"backbone": {"name": "resnet10", "stem": "standard"}, "checkpoint_epochs": 0.25, "epochs": 6}
TASKS = {
    "simclr": {"scale": [0.4, 1], "objective": {"temperature": 0.2, "width": 32}},
    "queue": {"task": "moco", "objective": {"queue": 40, "width": 32, "momentum": 0.9}},
    "rotation": {"weight": 0.5},
}


def test_views_are_learnt_beside_a_pretext_task_and_a_killed_run_goes_on_as_it_was(
    run_recipe: MakeRecipe, tmp_path: Path
) -> None:
    calm = pretrain(run_recipe({"tasks": TASKS, "storage": {"runs": str(tmp_path / "calm")}}, **TRAINING))
    assert calm["steps"] == 24
    simclr = calm["tasks"]["simclr"]
    assert simclr["trivial"] == pytest.approx(1 / 16)
    assert sum(simclr["metrics"][-8:]) / 8 > 0.13  # 128 samples: three standard errors above chance
    assert simclr["also"]["feature_std"] > 0.3
    assert 1 < simclr["also"]["effective_rank"] <= 16

    def interrupt(record: Record) -> None:
        if record["step"] == 13:
            raise KeyboardInterrupt

    spec = run_recipe({"tasks": TASKS}, **TRAINING)
    with pytest.raises(KeyboardInterrupt):
        pretrain(spec, [interrupt])
    again = pretrain(spec)
    for name in TASKS:
        assert again["tasks"][name]["loss"] == calm["tasks"][name]["loss"], name


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
