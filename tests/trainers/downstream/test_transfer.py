"""A transfer runs every cell once: interrupted and run again it leaves the same bytes, and a cell that fails stops no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline.errors import UserError
from pipeline.recipe import Recipe, parse_recipe
from trainers.downstream.transfer import TransferCell, cell_recipe, cells, tabulated, transfer
from trainers.networks.backbones import build_backbone
from trainers.planning.transfers import transfer_plan
from trainers.running.runs import RunFolder

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def grid(run_recipe: MakeRecipe, shard: Callable[..., str], tmp_path: Path) -> MakeRecipe:
    """`grid(**transfer)`: a recipe with given weights and random ones, on a tar of `.jpg` and `.cls` without an index."""
    spec = run_recipe().training.backbone
    torch.save(build_backbone(spec, 32, 5).network.state_dict(), tmp_path / "given.pth")
    train, test = shard("train", [0, 1] * 16), shard("test", [0, 1] * 6 + [None], damaged=(3,))

    def make(**changes: Any) -> Recipe:
        section = {
            "starts": {"given": {"weights": str(tmp_path / "given.pth")}, "random": {}},
            "datasets": {"photos": {"train": train, "test": test}},
            "labels": [0.5],
            **changes,
        }
        downstream = {"train": train, "test": test, "epochs": 6, "batch": 8}
        return run_recipe({"transfer": section, "downstream": downstream}, workers=0, checkpoint_epochs=0.5, keep=2)

    return make


def test_the_cells_are_all_combinations_and_each_has_a_folder_of_its_own(grid: MakeRecipe, tmp_path: Path) -> None:
    sets = {"a": {"train": "x", "test": "y"}, "b": {"train": "x", "test": "y", "problems": ["classification", "segmentation"]}}
    recipe = grid(datasets=sets, labels=[0.01, 0.1, 1], seeds=[0, 7])
    assert recipe.transfer is not None
    every = cells(recipe.transfer)
    assert len(every) == len(set(every)) == 2 * 3 * 3 * 2
    made = [cell_recipe(recipe, cell, str(tmp_path)) for cell in every]
    assert len({RunFolder(one).url for one in made}) == len(every)
    last = made[-1]
    assert last.downstream is not None
    assert (last.seed, last.downstream.labels, last.downstream.problem, last.downstream.epochs) == (7, 1.0, "segmentation", 6)
    assert last.transfer is None
    assert last.training.backbone.weights is None


def test_a_transfer_changes_no_identity_of_other_runs(grid: MakeRecipe, run_recipe: MakeRecipe) -> None:
    assert "transfer" not in run_recipe().model_dump(mode="json")
    changed = grid(labels=[1])
    assert RunFolder(changed).identity("pretrain") == RunFolder(grid()).identity("pretrain")
    assert parse_recipe(changed.model_dump(mode="json")) == changed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": [0.5, 0.5]}, "labels: one is given twice"),
        ({"starts": {"a": {"run": "x", "weights": "y"}}}, "leave one out"),
        ({"starts": {}}, "transfer.starts"),
        ({"starts": {"a/b": {}}}, "transfer.starts"),
    ],
)
def test_mistakes_in_the_section_are_refused(grid: MakeRecipe, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        grid(**changes)


def test_seeds_are_put_together_and_failed_cells_left_out() -> None:
    def cell(start: str, seed: int, value: float | None) -> dict[str, Any]:
        names = vars(TransferCell("d", "classification", 0.1, seed, start))
        row = {"protocol": "finetune", "value": value, "standard_error": 0.02, "labels": 8}
        return {**names, "rows": [row]} if value is not None else {**names, "reason": "why"}

    found = [cell("a", 0, 0.5), cell("a", 1, 0.7), cell("b", 0, 0.4), cell("b", 1, None)]
    (row,) = tabulated(found)
    assert (row["dataset"], row["protocol"], row["labels"], row["images"], row["measure"]) == (
        "d",
        "finetune",
        0.1,
        8,
        "accuracy",
    )
    assert row["starts"]["a"] == {"mean": pytest.approx(0.6), "standard_error": pytest.approx(0.1), "values": [0.5, 0.7]}
    assert row["starts"]["b"] == {"mean": 0.4, "standard_error": 0.02, "values": [0.4]}


def test_the_plan_counts_cells_and_names_starts_that_cannot_be_read(grid: MakeRecipe, tmp_path: Path) -> None:
    starts = {"random": {}, "gone": {"run": str(tmp_path / "nowhere")}}
    plan = transfer_plan(grid(starts=starts, seeds=[0, 1]), str(tmp_path / "out"))
    assert (plan["cells"].split(":")[0], plan["done"], plan["to do"]) == ("4", 0, 2)
    assert "gone: no pretrained backbone" in plan["would fail"]
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("local_ray")
def test_interrupted_between_cells_and_run_again_it_leaves_the_same_bytes(grid: MakeRecipe, tmp_path: Path) -> None:
    (sets,) = grid().transfer.datasets.values()  # type: ignore[union-attr]
    gone = {"train": str(tmp_path / "no.tar"), "test": sets.test}
    recipe = grid(datasets={"photos": sets.model_dump(), "gone": gone}, by="evaluate")
    undisturbed = transfer(recipe, str(tmp_path / "a"))

    def interrupt(done: int, _: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transfer(recipe, str(tmp_path / "b"), progress=interrupt)
    assert not (tmp_path / "b/transfer.json").exists()
    (first,) = (tmp_path / "b").rglob("transfer.cell.json")
    written = first.stat().st_mtime_ns
    assert transfer(recipe, str(tmp_path / "b")) == undisturbed
    assert first.stat().st_mtime_ns == written  # that cell was done
    assert (tmp_path / "a/transfer.json").read_bytes() == (tmp_path / "b/transfer.json").read_bytes()

    done, failed = ([cell for cell in undisturbed["cells"] if cell["status"] == status] for status in ("done", "failed"))
    assert [(cell["dataset"], cell["start"]) for cell in done] == [("photos", "given"), ("photos", "random")]
    assert [(cell["dataset"], cell["start"]) for cell in failed] == [("gone", "given"), ("gone", "random")]
    assert all("no.tar" in cell["reason"] for cell in failed)
    for cell in done:
        assert [row["protocol"] for row in cell["rows"]] == ["linear", "knn"]
        for row in cell["rows"]:
            assert (row["labels"], row["tested"], row["total"]) == (16, 11, 13)
            assert row["left_out"] == {"unusable": 1, "unlabelled": 1}
    assert [list(row["starts"]) for row in undisturbed["table"]] == [["given", "random"]] * 2
    text = (tmp_path / "b/transfer.json").read_text()
    assert json.loads(text) == undisturbed
    assert "seconds" not in text


@pytest.mark.slow
@pytest.mark.xdist_group("transfer")
def test_killed_by_the_system_and_run_again_the_command_leaves_the_same_bytes(grid: MakeRecipe, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(grid(labels=[0.5, 1]).model_dump(mode="json")))

    def start(out: str) -> subprocess.Popen[bytes]:
        call = [sys.executable, "-m", "pseudolabel", "transfer", str(recipe), "--out", str(tmp_path / out)]
        return subprocess.Popen(call, start_new_session=True)

    assert start("a").wait(300) == 0
    killed, end = start("b"), time.monotonic() + 300
    while len(list((tmp_path / "b").rglob("transfer.cell.json"))) < 2:
        assert killed.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "b/transfer.json").exists()
    assert start("b").wait(300) == 0
    assert (tmp_path / "a/transfer.json").read_bytes() == (tmp_path / "b/transfer.json").read_bytes()
    (row,) = json.loads((tmp_path / "a/transfer.json").read_text())["cells"][0]["rows"]
    assert (row["protocol"], row["labels"], row["steps"]) == ("finetune", 16, 12)
    assert not list((tmp_path / "b").rglob("*.pt"))  # neither weights nor checkpoints stay
