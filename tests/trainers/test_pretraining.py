"""Pretraining on real Ray Data and Ray Train, on tiles of real photos."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import BudgetExceeded, RunError, UserError
from pipeline.recipe import Recipe
from pipeline.shards.pack import pack
from tests.cluster_of_one import kill_worker, listening, wait_for_another, workers
from tests.tiles import Finished
from tests.trainers.ledgers import due, trained
from trainers.networks import precision
from trainers.pretraining import pretrain
from trainers.running.capacity import Node
from trainers.running.run_log import Record
from trainers.running.runs import RunFolder

pytestmark = pytest.mark.usefixtures("local_ray")

MakeRecipe = Callable[..., Recipe]


LEDGER = {"samples": True, "tensorboard": False}


def beyond_loopback(seen: dict[str, set[str]]) -> dict[str, set[str]]:
    """Of the processes that listen those that do so on other addresses than loopback ones."""
    return {title: wide for title, ips in seen.items() if (wide := ips - {"127.0.0.1", "::1", "::ffff:127.0.0.1"})}


def losses(result: dict[str, Any]) -> list[float]:
    return result["tasks"]["rotation"]["loss"]


def test_a_run_leaves_weights_results_and_logs(calm: Finished) -> None:
    assert calm.result["steps"] == 48
    assert len(losses(calm.result)) == 48
    folder = RunFolder(calm.recipe)
    assert folder.read_json("pretrain.json")["tasks"] == calm.result["tasks"]
    assert folder.read_json("recipe.json") == calm.recipe.model_dump(mode="json")
    assert "stage2.0.branch1.0.weight" in " ".join(folder.read_weights("backbone.pt")["backbone"])
    assert not folder.stages()  # no checkpoint is needed any more
    lines = [json.loads(line) for line in Path(folder.path("pretrain.jsonl")).read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 49))
    assert list(Path(folder.path("tensorboard")).rglob("events.*"))
    assert trained(calm.recipe) == due(calm.recipe)


def test_a_finished_run_is_trained_again_only_if_asked_and_placement_and_actors_change_no_loss(
    run_recipe: MakeRecipe, calm: Finished, tmp_path: Path
) -> None:
    calm.copied(tmp_path)
    spec = run_recipe({"placement": {"render": "trainer", "actors": 2, "cpus": 0.5}, "tracking": LEDGER}, **calm.training)
    steps: list[int] = []
    again = pretrain(spec, [lambda record: steps.append(record["step"])])
    assert (again, steps) == (calm.result, [])
    shutil.rmtree(RunFolder(spec).path("samples"))

    def interrupt(record: Record) -> None:
        steps.append(record["step"])
        if record["step"] == 48:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(spec, [interrupt], fresh=True)
    again = pretrain(spec, [interrupt])  # the result of the previous run is not taken for that of the fresh one
    assert steps == list(range(1, 49))
    assert [event["step"] for event in again["events"]] == [48]
    assert losses(again) == losses(calm.result)
    assert trained(spec) == due(spec) == due(calm.recipe)


def test_a_changed_key_is_said_before_it_replaces_a_backbone_and_nothing_is_replaced_before_the_end(
    run_recipe: MakeRecipe, calm: Finished, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow: Any = pytest.importorskip("mlflow", reason="the `mlflow` extra is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    calm.copied(tmp_path)
    store = (tmp_path / "mlruns").as_uri()
    spec = run_recipe({"tracking": {"tensorboard": False, "mlflow": store}}, **{**calm.training, "epochs": 1})
    folder = RunFolder(spec)
    (tmp_path / "runs/run/finetune-random-0123456789ab").mkdir()  # it started from the backbone that is replaced
    before: set[tuple[str, int]] = set()

    def look(record: Record) -> None:
        identities = [str(folder.read_weights("backbone.pt")["identity"]), folder.read_json("pretrain.json")["identity"]]
        before.update((identity, folder.read_json("recipe.json")["training"]["epochs"]) for identity in identities)

    result = pretrain(spec, [look])
    (said,) = [line for line in caplog.messages if "another recipe" in line]
    assert f"{folder.url} holds the backbone of another recipe (training.epochs (was 12, now 1)): it, its results" in said
    assert "--set name=run-2" in said
    assert before == {(RunFolder(calm.recipe).identity("pretrain"), 12)}
    assert (
        folder.read_weights("backbone.pt")["identity"]
        == folder.identity("pretrain")
        != RunFolder(calm.recipe).identity("pretrain")
    )
    assert folder.read_json("recipe.json")["training"]["epochs"] == 1
    assert folder.stages() == []
    assert {task["learnt"] for task in result["tasks"].values()} == {None}  # of four steps nobody can tell
    model = mlflow.MlflowClient(store).get_model_version_by_alias("run", "pretrained")  # the backbone that is there now
    assert int(model.version) == 1
    caplog.clear()
    pretrain(spec)
    assert "another recipe" not in caplog.text


@pytest.mark.slow
def test_eight_tasks_train_together_on_two_workers_one_a_sample_with_learnt_weights(run_recipe: MakeRecipe) -> None:
    eight = ["rotation", "colorization", "denoising", "masked_patches", "relative_position", "corrupted_region", "jigsaw_order"]
    spec = run_recipe(
        {
            "tasks": {name: {} for name in [*eight, "rotation_angle"]},
            "placement": {"actors": 2, "cpus": 0.5},
            "tracking": LEDGER,
        },
        workers=2,
        epochs=1,
        tasks_per_sample="one",
        task_weights="uncertainty",
    )
    seen: dict[str, set[str]] = {}
    result = pretrain(spec, [lambda _: seen.update(listening())])
    assert sum("RayTrainWorker" in title for title in seen) >= 2
    assert beyond_loopback(seen) == {}
    assert list(result["tasks"]) == [*eight, "rotation_angle"]
    assert trained(spec) == due(spec)
    assert (result["stages"]["samples"], type(result["stages"]["samples"])) == (4 * 16, int)
    for task in result["tasks"].values():
        assert len(task["loss"]) == 4
        assert all(math.isfinite(number) for number in [*task["loss"], task["metric"], task["trivial"], *task["also"].values()])
    assert result["tasks"]["denoising"]["also"].keys() == {"ssim", "precision"}


def test_a_run_outlives_the_death_of_a_rendering_actor_and_of_a_training_worker(run_recipe: MakeRecipe, calm: Finished) -> None:
    killed: dict[str, int] = {}
    victims = ((2, "MapWorker"), (10, "RayTrainWorker"))
    before = {process.pid for _, name in victims for process in workers(name)}  # of earlier runs some may not be gone yet

    seen: dict[str, set[str]] = {}

    def kill(record: Record) -> None:
        for step, name in victims:
            if record["step"] >= step and name not in killed:
                if name == "RayTrainWorker":
                    wait_for_another("MapWorker", {*before, killed["MapWorker"]})  # without it the run cannot end
                killed[name] = kill_worker(name, before)
                if name == "MapWorker":
                    seen.update(listening())  # while training waits; before the kill the actor would finish meanwhile

    result = pretrain(run_recipe(workers=1, **calm.training), [kill])
    assert list(killed) == ["MapWorker", "RayTrainWorker"]
    assert any("RayTrainWorker" in title for title in seen)
    assert beyond_loopback(seen) == {}
    assert losses(result) == losses(calm.result)
    said = [event["what"] for event in result["events"]]
    assert any("a data actor died" in what for what in said)
    assert any("worker 0 was lost" in what and "training goes on from step" in what for what in said)
    assert result["stages"]["samples"] == 16 * result["steps"]  # also those from before the restart


def test_too_many_bad_images_end_the_run_and_are_named(
    run_recipe: MakeRecipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for n in range(40):
        (tmp_path / "bad" / "x").mkdir(parents=True, exist_ok=True)
        (tmp_path / "bad" / "x" / f"{n}.jpg").write_bytes(b"not a photo")
    pack(str(tmp_path / "bad"), str(tmp_path / "badshards"))
    with pytest.raises(BudgetExceeded, match=r"(?s)failures.budget.*x/.*not a decodable image"):
        pretrain(run_recipe({"corpus": {"shards": str(tmp_path / "badshards")}, "failures": {"budget": 5}}))
    assert "constructor arguments in the object store" not in capfd.readouterr().err  # Ray's message of a false error


def test_a_loss_that_is_no_number_ends_the_run_in_words_and_is_in_no_checkpoint(run_recipe: MakeRecipe) -> None:
    spec = run_recipe(optimizer={"name": "sgd", "lr": 1e30, "warmup": 0}, log_steps=1000, epochs=1)
    with pytest.raises(RunError, match=r"^at step \d+ the loss of .* is not finite: lower training\.optimizer\.lr"):
        pretrain(spec)
    assert not list(Path(RunFolder(spec).checkpoints("pretrain")).glob("step-*"))


@pytest.mark.slow
def test_a_run_whose_bfloat16_is_wrong_computes_in_float32_and_says_so(
    run_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = pretrain(run_recipe({"storage": {"runs": str(tmp_path / "exact")}}, epochs=1, precision="float32"))
    monkeypatch.setattr(precision, "disagreements", lambda device, run: run() or ["conv2d(16x64x1x1, 64x64x3x3) (not finite)"])
    found = pretrain(run_recipe(epochs=1, precision="bfloat16"))
    assert losses(found) == losses(exact)
    assert [event["what"] for event in found["events"]] == [
        "rank 0: bfloat16 is wrong on this processor for conv2d(16x64x1x1, 64x64x3x3) (not finite): it computes in float32"
    ]


def test_more_than_the_cluster_has_is_refused_with_the_arithmetic(run_recipe: MakeRecipe) -> None:
    with pytest.raises(
        UserError, match=r"needs 9\.5 CPUs \(8 workers x 1 \+ 1 actors x 0\.5 \+ 1 for Ray Data\), the cluster has 6"
    ):
        pretrain(run_recipe(workers=8, order={"lanes": 8, "groups": 8}))


def test_a_step_that_needs_more_memory_than_there_is_is_refused(run_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.pretraining.nodes", lambda: [Node(6, memory=2**20)])
    spec = run_recipe(precision="float32")
    with pytest.raises(UserError, match=r"a step needs at least .* 16 samples x .* \(tasks\.\w+\) .* lower training\.batch"):
        pretrain(spec)
    assert not Path(RunFolder(spec).url).exists()


def test_more_workers_than_lanes_are_refused(run_recipe: MakeRecipe) -> None:
    with pytest.raises(UserError, match="17 workers cannot share 16 lanes"):
        pretrain(run_recipe(workers=17))
