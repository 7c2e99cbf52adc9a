"""Pretraining on real Ray Data and Ray Train, on tiles of real photos."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from skimage import data

from pipeline.errors import BudgetExceeded, UserError
from pipeline.recipe import Recipe, parse_recipe
from pipeline.shards.pack import pack
from tests.cluster_of_one import kill_worker
from trainers.board import Record
from trainers.pretrain import pretrain
from trainers.runs import RunFolder

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
def recipe(tiles: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """`recipe(**training)`: rotation and occlusion on the tiles, three epochs of four steps."""

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


pytestmark = pytest.mark.usefixtures("local_ray")


def losses(result: dict[str, Any]) -> list[float]:
    return result["tasks"]["rotation"]["loss"]


def test_a_run_leaves_weights_results_and_logs(recipe: Callable[..., Recipe]) -> None:
    spec = recipe()
    result = pretrain(spec)
    assert result["steps"] == 12
    assert len(losses(result)) == 12
    folder = RunFolder(spec)
    assert folder.read_json("pretrain.json")["tasks"] == result["tasks"]
    assert folder.read_json("recipe.json") == spec.model_dump(mode="json")
    assert "layer1.0.conv1.weight" in " ".join(folder.read_weights("backbone.pt")["backbone"])
    lines = [json.loads(line) for line in Path(folder.path("pretrain.jsonl")).read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert list(Path(folder.path("tensorboard")).rglob("events.*"))


def test_both_placements_and_any_number_of_actors_train_to_the_same_losses(recipe: Callable[..., Recipe]) -> None:
    plain = losses(pretrain(recipe()))
    in_trainer = recipe({"name": "trainer", "placement": {"render": "trainer", "cpus": 0.5}})
    three = recipe({"name": "three", "placement": {"actors": 3, "cpus": 0.5}})
    assert losses(pretrain(in_trainer)) == plain
    assert losses(pretrain(three)) == plain


def test_two_workers_train_on_the_same_batches_together(recipe: Callable[..., Recipe]) -> None:
    result = pretrain(recipe(workers=2))
    assert result["steps"] == 12
    assert result["stages"]["samples"] == 12 * 8


def test_a_run_outlives_the_death_of_a_rendering_actor_and_of_a_training_worker(recipe: Callable[..., Recipe]) -> None:
    undisturbed = losses(pretrain(recipe({"name": "calm"}, epochs=20)))
    killed: list[str] = []

    def kill(record: Record) -> None:
        for step, name in ((2, "MapWorker"), (30, "RayTrainWorker")):
            if record["step"] >= step and name not in killed:
                killed.append(name)
                kill_worker(name)

    result = pretrain(recipe({"name": "stormy"}, epochs=20), [kill])
    assert killed == ["MapWorker", "RayTrainWorker"]
    assert losses(result) == undisturbed


def test_a_finished_run_is_not_trained_again_unless_asked(recipe: Callable[..., Recipe]) -> None:
    first = pretrain(recipe())
    steps: list[int] = []
    again = pretrain(recipe(), [lambda record: steps.append(record["step"])])
    assert again["tasks"] == first["tasks"]
    assert steps == []
    pretrain(recipe(), [lambda record: steps.append(record["step"])], fresh=True)
    assert steps == list(range(1, 13))


def test_too_many_bad_images_end_the_run_and_are_named(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    for n in range(40):
        (tmp_path / "bad" / "x").mkdir(parents=True, exist_ok=True)
        (tmp_path / "bad" / "x" / f"{n}.jpg").write_bytes(b"not a photo")
    pack(str(tmp_path / "bad"), str(tmp_path / "badshards"))
    with pytest.raises(BudgetExceeded, match=r"(?s)failures.budget.*x/.*not a decodable image"):
        pretrain(recipe({"corpus": {"shards": str(tmp_path / "badshards")}, "failures": {"budget": 5}}))


def test_more_than_the_cluster_has_is_refused_with_the_arithmetic(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match=r"needs 9\.5 CPUs \(8 workers x 1 \+ 1 actors x 0\.5 \+ 1 for Ray Data\), the cluster has 6"):
        pretrain(recipe(workers=8, order={"lanes": 8, "groups": 8}))


def test_workers_that_cannot_share_the_groups_are_refused(recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match="3 workers cannot share 4 groups"):
        pretrain(recipe(workers=3))
