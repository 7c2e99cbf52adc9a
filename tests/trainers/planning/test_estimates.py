"""Estimates come from the run's own work, tried for a moment, and leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.materialize.run import render_job
from pipeline.recipe import Recipe
from tests.tiles import Finished
from trainers.downstream.finetune import finetune
from trainers.labelling.cluster import clustering_job
from trainers.labelling.embed import embed, embed_job
from trainers.labelling.label import label_job
from trainers.planning.estimates import (
    RunEstimate,
    estimate_cluster,
    estimate_evaluate,
    estimate_finetune,
    estimate_job,
    estimate_pretrain,
    estimate_rounds,
)
from trainers.planning.peak_memory import PeakMemory
from trainers.planning.transfers import estimate_transfer
from trainers.planning.trial import elsewhere, settled_pace
from trainers.running.checkpoints import Checkpoints
from trainers.running.runs import RunFolder

MakeRecipe = Callable[..., Recipe]


def test_the_first_third_of_the_steps_is_left_out_of_the_pace() -> None:
    slow, even = [100.0, 110.0, 120.0], [121.0 + step for step in range(6)]
    trial = settled_pace(90.0, [*slow, *even])
    assert (trial.start, trial.each, trial.measured) == (10.0, 1.0, 5)
    assert settled_pace(90.0, [95.0]).start == 5.0


def test_memory_is_that_of_a_process_and_of_its_children() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = bytes(200_000_000).upper(); input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process, PeakMemory(process.pid) as memory:
        end = time.monotonic() + 60
        while memory.bytes < 200_000_000:
            assert time.monotonic() < end
            time.sleep(0.05)
        process.communicate(b"\n")
    assert memory.bytes < 500_000_000


def test_on_a_cluster_the_trial_lies_beside_the_run_and_is_removed(
    run_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with elsewhere(run_recipe()) as other:
        folder = RunFolder(other)
        assert folder.url == str(tmp_path / "runs" / "run-dry-run")
        Path(folder.checkpoints("pretrain")).mkdir(parents=True)
    assert list((tmp_path / "runs").iterdir()) == []
    assert "memory bytes" not in RunEstimate(0.0, memory=7).facts()  # which is not known of other machines


@pytest.mark.usefixtures("local_ray")
def test_pretraining_is_tried_and_its_folder_left_alone(run_recipe: MakeRecipe, tmp_path: Path) -> None:
    spec, steps = run_recipe({"tracking": {"samples": True}}, epochs=5000), 5000 * 4
    checkpoints = Checkpoints(RunFolder(spec).checkpoints("pretrain"), 2)
    checkpoints.save(steps // 2, {"x": torch.zeros(2)})
    checkpoints.wait()
    before = sorted(tmp_path.rglob("*"))
    found = estimate_pretrain(spec, time.time() - 7.0, seconds=0.5)
    start = float(found.measured.split()[-4])
    assert start >= 7.0  # what came before counts
    assert found.seconds - start == pytest.approx(steps / 2 * float(found.measured.split()[0]), rel=0.1)
    assert found.memory > 100_000_000
    assert found.facts().keys() == {"estimated time seconds", "measured", "memory bytes"}
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("local_ray")
def test_a_complete_run_is_not_tried(run_recipe: MakeRecipe, calm: Finished, tmp_path: Path) -> None:
    calm.copied(tmp_path)
    assert estimate_pretrain(run_recipe({}, **calm.training)).measured == ""


@pytest.mark.usefixtures("local_ray")
def test_a_render_is_tried_and_its_folder_left_alone(run_recipe: MakeRecipe, tmp_path: Path) -> None:
    found = estimate_job(render_job, run_recipe({"engine": "cpu"}), str(tmp_path / "pairs"))
    assert "a sample (" in found.measured
    assert found.seconds > 0
    assert not (tmp_path / "pairs").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_all_others_are_tried(run_recipe: MakeRecipe, calm: Finished, tiles: Path, tmp_path: Path) -> None:
    calm.copied(tmp_path)
    downstream: dict[str, Any] = {"train": str(tiles), "test": str(tiles), "epochs": 2, "batch": 16}
    spec = run_recipe({"downstream": downstream, "tracking": {"tensorboard": False}}, **calm.training)
    assert "a batch (" in estimate_evaluate(spec, seconds=0.5).measured
    assert "a step (" in estimate_finetune(spec, seconds=0.5).measured
    finetune(spec)
    out = str(tmp_path / "out")
    for make in (embed_job, label_job):
        assert "a sample (" in estimate_job(make, spec, out).measured
    assert not os.path.exists(out)
    embed(spec, out, here=True)
    job = clustering_job(out, 3, str(tmp_path / "clusters"))
    few = estimate_cluster(job, seconds=0.3)
    assert few.measured.endswith("ms a feature and round of 3 clusters")
    more = estimate_cluster(replace(job, identity={**job.identity, "rounds": 2000}), seconds=0.3)
    assert more.seconds > 10 * few.seconds


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_an_estimate_of_a_transfer_counts_every_cell_and_leaves_nothing(
    run_recipe: MakeRecipe, tiles: Path, tmp_path: Path
) -> None:
    grid = {"starts": {"random": {}, "gone": {"run": "nowhere"}}, "seeds": [0, 1]}
    recipe = run_recipe({"transfer": {**grid, "datasets": {"tiles": {"train": str(tiles), "test": str(tiles)}}}}, workers=0)
    found = estimate_transfer(recipe, str(tmp_path / "out"), seconds=0.2)
    assert found.seconds > 0
    assert "a cell of each of 1 " in found.measured
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_rounds_are_tried_step_by_step_and_added_up(run_recipe: MakeRecipe, tmp_path: Path) -> None:
    def spec(count: int) -> Recipe:
        return run_recipe({"tasks": {}, "rounds": {"method": "deepcluster", "clusters": 6, "count": count}})

    found = estimate_rounds(spec(3), seconds=0.5)
    for part in ("3 rounds: ", "a sample (", "clusters ", "a step ("):
        assert part in found.measured
    assert found.seconds > 0
    assert list(tmp_path.rglob("*.pt")) == []
