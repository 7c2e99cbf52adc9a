"""Runs side by side: means over seeds with their standard errors, and what else differs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.recipe import Recipe
from tests.cluster.conftest import Call
from trainers.running.runs import RunFolder

MakeRecipe = Callable[..., Recipe]
MEASURED = {"test": ["/photos/test"], "classes": 3, "tested": 100, "total": 100, "chance": 1 / 3, "labels": 72}


@pytest.fixture
def run(run_recipe: MakeRecipe) -> Callable[..., str]:
    """`run(name, seed, random, pretrained, **training)`: the folder of a run with these accuracies."""

    def make(name: str, seed: int, random: float, pretrained: float, identity: str = "x", **training: object) -> str:
        recipe = run_recipe({"name": name, "seed": seed}, **training)
        folder = RunFolder(recipe)
        folder.make()
        folder.write_json("recipe.json", recipe.model_dump(mode="json"))
        tasks = {"rotation": {"loss": [1.0], "metric": pretrained / 2, "trivial": 0.25, "measured": "accuracy"}}
        folder.write_json("pretrain.json", {"identity": identity, "tasks": tasks, "steps": 200})
        rows = [
            {"init": init, "protocol": "linear", "layer": "layer3", "accuracy": value, "standard_error": 0.04, **MEASURED}
            for init, value in (("pretrained", pretrained), ("random", random))
        ]
        folder.write_json("evaluate.json", {"pretraining": "x", "downstream": rows})
        return folder.url

    return make


def test_a_second_run_of_one_seed_and_runs_judged_otherwise_are_rows_of_their_own(run, call: Call) -> None:
    first, again = run("first", 0, 0.5, 0.7), run("again", 0, 0.5, 0.8)
    judged = run("judged", 1, 0.5, 0.6)
    recipe = json.loads(Path(judged, "recipe.json").read_text())
    Path(judged, "recipe.json").write_text(json.dumps(recipe | {"downstream": {"train": "a", "test": "b", "labels": 0.1}}))
    groups = json.loads(call("compare", first, again, judged, "--json").stdout)
    assert [(group["names"], group["seeds"]) for group in groups] == [(["first"], [0]), (["again"], [0]), (["judged"], [1])]
    assert groups[1]["differs"] == {}
    assert any(key.startswith("downstream") for key in groups[2]["differs"])


def test_runs_that_differ_in_their_seed_are_a_mean_with_the_standard_error_over_seeds(run, call: Call) -> None:
    seeds = [run(f"run-{seed}", seed, 0.5, value) for seed, value in enumerate((0.7, 0.8, 0.9))]
    other = run("longer", 0, 0.5, 0.9, epochs=9)
    groups = json.loads(call("compare", *seeds, other, "--json").stdout)
    assert [group["seeds"] for group in groups] == [[0, 1, 2], [0]]
    (row,) = groups[0]["downstream"]
    assert row["pretrained"]["mean"] == pytest.approx(0.8)
    assert row["pretrained"]["standard_error"] == pytest.approx(0.1 / math.sqrt(3))
    assert row["gain"]["mean"] == pytest.approx(0.3)
    assert groups[0]["pretext"]["rotation"]["metric"]["mean"] == pytest.approx(0.4)
    assert groups[1]["downstream"][0]["pretrained"]["standard_error"] == 0.04
    assert groups[1]["downstream"][0]["gain"]["standard_error"] == pytest.approx(math.hypot(0.04, 0.04))
    assert groups[1]["differs"] == {"training.epochs": [3, 9]}

    words = call("compare", *seeds, other).stdout
    for shown in (
        "80.0 ± 5.8",
        "+30.0 ± 5.8",
        "90.0 ± 4.0",
        "+40.0 ± 5.7",
        "run-0 and 2 more",
        "0, 1, 2",
        "linear on layer3",
        "rotation (accuracy)",
        "40.0 ± 2.9 %",
        "25.0 ± 0.0 %",
    ):
        assert shown in words
    assert "longer differs in" in words
    assert re.search(r"training\.epochs +3 +9", words)


def test_results_of_an_earlier_backbone_are_left_out(run, call: Call) -> None:
    (group,) = json.loads(call("compare", run("run", 0, 0.5, 0.7, identity="later"), "--json").stdout)
    assert group["downstream"] == []


def test_what_is_no_finished_run_is_refused(run, refused: Callable[..., str], tmp_path: Path) -> None:
    there = run("run", 0, 0.5, 0.7)
    assert "give folders of finished runs" in refused(2, "compare", there, tmp_path)
    assert "given twice" in refused(2, "compare", there, f"{there}/")


def test_mean_ious_are_compared_under_their_own_name(run, call: Call) -> None:
    folders = [run(f"run-{seed}", seed, 0.5, 0.6) for seed in range(2)]
    for folder, value in zip(folders, (0.25, 0.35)):
        rows = [
            {"init": init, "protocol": "finetune", "measure": "mean_iou", "mean_iou": iou, "standard_error": 0.02, **MEASURED}
            for init, iou in (("pretrained", value), ("random", 0.2))
        ]
        (Path(folder) / "finetune.json").write_text(json.dumps({"pretraining": "x", "downstream": rows}))
    ((probed, tuned),) = (group["downstream"] for group in json.loads(call("compare", *folders, "--json").stdout))
    assert "measure" not in probed
    assert (tuned["measure"], tuned["pretrained"]["mean"]) == ("mean_iou", pytest.approx(0.3))
    words = call("compare", *folders).stdout
    assert "mean IoU on /photos/test, %" in words
    assert "accuracy on /photos/test, %" in words
