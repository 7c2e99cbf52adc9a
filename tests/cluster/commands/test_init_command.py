"""`init` writes a recipe that fits the corpus and runs as it is."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from pipeline.recipe import Recipe, load_recipe
from pipeline.shards.opening import open_corpus
from pipeline.streaming.pairs import pairs
from tests.cluster.conftest import Call
from trainers.pretraining import prepared

PHOTOS = (data.astronaut(), data.coffee(), data.chelsea(), data.rocket())


def shard(folder: Path, pictures: list[np.ndarray], frames: int = 1, labels: bool = False) -> str:
    """A shard of PNGs, each sample of so many frames."""
    folder.mkdir()
    with tarfile.open(folder / "000000.tar", "w") as tar:
        for n, pixels in enumerate(pictures):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            names = [f"{n:04d}.png"] if frames == 1 else [f"{n:04d}.{frame}.png" for frame in range(frames)]
            members = dict.fromkeys(names, file.getvalue()) | ({f"{n:04d}.cls": str(n % 2).encode()} if labels else {})
            for name, body in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    return str(folder)


def crops(side: int, n: int = 16) -> list[np.ndarray]:
    return [np.ascontiguousarray(PHOTOS[i % 4][3 * i : 3 * i + side, 3 * i : 3 * i + side + 6]) for i in range(n)]


def made(call: Call, tmp_path: Path, *words: str) -> tuple[Recipe, str]:
    """The recipe that the command writes, after an epoch of its pairs was rendered; and its text."""
    result = call("init", *words, "--out", tmp_path / "recipe.yaml")
    assert result.exit_code == 0, result.output
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert sum(batch["weight"].sum() for batch in pairs(recipe, epoch=0)) >= recipe.training.batch
    prepared(recipe)  # raises what would keep it from training
    return recipe, (tmp_path / "recipe.yaml").read_text()


def test_small_labelled_images_get_their_size_and_a_downstream_task(call: Call, tmp_path: Path) -> None:
    shards = shard(tmp_path / "cifar", crops(32, 40), labels=True)
    recipe, text = made(call, tmp_path, shards, "--test", shards)
    assert (recipe.name, recipe.image.size, list(recipe.tasks)) == ("cifar", 32, ["rotation", "occlusion", "colorization"])
    assert recipe.downstream is not None
    assert (recipe.downstream.train, recipe.downstream.test) == (shards, shards)
    assert [line for line in text.splitlines() if "  # " not in line] == ["training:", "  backbone:"]


def test_photos_get_large_crops_and_the_downstream_task_as_a_comment(call: Call, tmp_path: Path) -> None:
    recipe, text = made(call, tmp_path, shard(tmp_path / "photos", crops(250, 9), labels=True))
    assert recipe.image.size == 224
    assert recipe.downstream is None
    assert "#   test: shards/test" in text


def test_images_without_labels_are_not_asked_for_any(call: Call, tmp_path: Path) -> None:
    recipe, text = made(call, tmp_path, shard(tmp_path / "web", crops(70)))
    assert (recipe.image.size, recipe.downstream) == (64, None)
    assert "these shards have no labels" in text


def test_grey_scans_have_no_colorization_and_equal_channels(call: Call, tmp_path: Path) -> None:
    recipe, _ = made(call, tmp_path, shard(tmp_path / "scans", [crop[..., 1] for crop in crops(100)]))
    assert "colorization" not in recipe.tasks
    assert len(set(recipe.image.mean)) == len(set(recipe.image.std)) == 1


@pytest.mark.parametrize("coloured", [2, 12])
def test_most_images_decide_whether_there_are_colours_and_a_tint_is_none(call: Call, tmp_path: Path, coloured: int) -> None:
    """Scans on yellow paper, with noise, and some colour photos among them."""
    rng, tint = np.random.default_rng(0), np.array([1.0, 0.9, 0.7])
    noise = rng.normal(0, 5, (16 - coloured, 48, 54, 3))
    scans = [
        (data.camera()[i * 9 : i * 9 + 48, :54, None] * tint + noise[i]).clip(0, 255).astype(np.uint8)
        for i in range(16 - coloured)
    ]
    recipe, _ = made(call, tmp_path, shard(tmp_path / "mixed", scans + [crop[:48] for crop in crops(48, coloured)]))
    assert ("colorization" in recipe.tasks) == (coloured > 8)


def test_clips_have_their_frames_and_the_task_of_their_order(call: Call, tmp_path: Path) -> None:
    recipe, _ = made(call, tmp_path, shard(tmp_path / "clips", crops(48), frames=4))
    assert (recipe.corpus.frames, "frame_order" in recipe.tasks) == (4, True)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_the_recipes_of_five_corpora_train_as_they_are(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of each; `evaluate` of the one with a test set."""
    monkeypatch.chdir(tmp_path)
    corpora = {
        "cifar": shard(tmp_path / "cifar", crops(32, 40), labels=True),
        "photos": shard(tmp_path / "photos", crops(250, 12), labels=True),
        "scans": shard(tmp_path / "scans", [crop[..., 1] for crop in crops(100)]),
        "clips": shard(tmp_path / "clips", crops(48), frames=4),
        "unlabelled": shard(tmp_path / "unlabelled", crops(70)),
    }
    for name, shards in corpora.items():
        test = ("--test", shards) if name == "cifar" else ()
        assert call("init", shards, *test, "--out", f"{name}.yaml").exit_code == 0
        done = call("pretrain", f"{name}.yaml", "--set", "training.epochs=1")
        assert done.exit_code == 0, done.output
        assert Path("runs", name, "backbone.pt").exists()
    done = call("evaluate", "cifar.yaml", "--set", "training.epochs=1")
    assert done.exit_code == 0, done.output


def test_means_and_deviations_are_those_of_the_centred_squares(call: Call, tmp_path: Path) -> None:
    halves = [np.zeros((32, 40, 3), np.uint8) for _ in range(8)]
    for n, half in enumerate(halves):
        half[:, :4] = half[:, 36:] = 255  # outside of the centred square
        half[:, 4:36] = (51, 102, 0) if n % 2 else (153, 102, 204)
    recipe, _ = made(call, tmp_path, shard(tmp_path / "halves", halves))
    assert recipe.image.mean == pytest.approx((0.4, 0.4, 0.4), abs=1e-3)
    assert recipe.image.std == pytest.approx((0.2, 0.001, 0.4), abs=1e-3)


def test_a_damaged_image_is_passed_over_and_only_damaged_ones_are_a_failure(
    call: Call, refused: Callable[..., str], tmp_path: Path
) -> None:
    good = shard(tmp_path / "good", crops(32, 15))
    for folder in ("some", "none"):
        (tmp_path / folder).mkdir()
        with tarfile.open(tmp_path / folder / "bad.tar", "w") as tar:
            info = tarfile.TarInfo("bad.png")
            info.size = 8
            tar.addfile(info, io.BytesIO(b"no image"))
    (tmp_path / "some" / "good.tar").write_bytes(Path(good, "000000.tar").read_bytes())
    result = call("init", tmp_path / "some", "--out", tmp_path / "a.yaml")
    assert result.exit_code == 0, result.output
    assert "15 images" in result.stdout
    assert "none of 1 images" in refused(1, "init", tmp_path / "none", "--out", tmp_path / "b.yaml")
    assert open_corpus(str(tmp_path / "some")).samples == 16


def test_a_recipe_that_is_there_is_not_replaced(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("mine")
    assert "it is there already" in refused(2, "init", tmp_path, "--out", tmp_path / "recipe.yaml")
    assert (tmp_path / "recipe.yaml").read_text() == "mine"
