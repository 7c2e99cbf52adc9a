"""`transfer` as a user meets it: what it leaves, how it ends where cells fail, and what it would do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.conftest import Call


@pytest.fixture
def gone(recipe_file: Path, tmp_path: Path) -> Path:
    """A recipe whose data set is not there, so that no cell can begin."""
    shards = f"{{train: {tmp_path}/no-train.tar, test: {tmp_path}/no-test.tar}}"
    recipe_file.write_text(f"{recipe_file.read_text()}\ntransfer: {{starts: {{random: {{}}}}, datasets: {{pets: {shards}}}}}\n")
    return recipe_file


@pytest.mark.usefixtures("local_ray")
def test_cells_that_fail_are_named_and_the_table_is_left_all_the_same(call: Call, gone: Path, tmp_path: Path) -> None:
    done = call("transfer", gone)
    assert done.exit_code == 1, done.output
    assert "failed: random on pets (classification, 100 % of the labels, seed 0): " in done.stdout
    assert "no-train.tar" in done.stdout
    assert "1 of 1 cells failed" in done.stderr
    folder = tmp_path / "runs/mine/transfer"
    assert {"transfer.json", "transfer.png", "transfer.html", "transfer.result.json"} <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "transfer.json").read_text())["cells"][0]["status"] == "failed"
    result = json.loads((folder / "transfer.result.json").read_text())
    assert (result["status"], result["counts"]) == ("failed", {"cells": 1, "failed": 1})


def test_a_dry_run_counts_the_cells_and_writes_nothing(call: Call, gone: Path, tmp_path: Path) -> None:
    done = call("transfer", gone, "--dry-run", "--set", "transfer.labels=[0.1, 1]", "--set", "transfer.seeds=[0, 1, 2]")
    assert done.exit_code == 0, done.output
    words = " ".join(done.stdout.split())
    assert "transfer, which was not run" in words
    assert "cells 6: 1 starts x 1 problems on data sets x 2 fractions of the labels x 3 seeds" in words
    assert not (tmp_path / "runs").exists()


def test_a_recipe_without_the_section_is_refused(refused: Callable[..., str], recipe_file: Path) -> None:
    assert "the recipe has no `transfer` section" in refused(2, "transfer", recipe_file)
