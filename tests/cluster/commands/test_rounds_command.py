"""`rounds`: what it would do, what is refused before anything starts, and the id of its job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.jobs.ray_jobs import settled_paths, stable_id
from pipeline.recipe import load_recipe
from tests.cluster.conftest import Call
from trainers.planning.estimates import RunEstimate

Refused = Callable[..., str]


@pytest.fixture
def rounds_file(recipe_file: Path) -> Path:
    """The recipe with rounds beside its two tasks."""
    recipe_file.write_text(f"{recipe_file.read_text()}\nrounds: {{method: deepcluster, clusters: 6, count: 3}}\n")
    return recipe_file


def test_a_dry_run_names_method_rounds_and_disk_and_leaves_nothing(
    call: Call, rounds_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.planning.estimates.estimate_rounds", lambda recipe: RunEstimate(0.0))
    result = call("rounds", rounds_file, "--dry-run")
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    for shown in ("rounds, which was not run", "deepcluster, 6 clusters", "3, 0 of them done", "4 in each round", "disk needed"):
        assert shown in words
    assert not (tmp_path / "runs").exists()


def test_a_recipe_is_for_rounds_or_for_pretraining(
    refused: Refused, rounds_file: Path, recipe_file: Path, tmp_path: Path
) -> None:
    assert "run `pseudolabel rounds` on it" in refused(2, "pretrain", rounds_file)
    plain = tmp_path / "plain.yaml"
    plain.write_text(rounds_file.read_text().partition("\nrounds:")[0])
    assert "the recipe has no section `rounds`, such as" in refused(2, "rounds", plain)
    assert "must be 'deepcluster', 'selflabel' or 'clusterfit'" in refused(
        2, "rounds", rounds_file, "--set", "rounds.method=deepclusters"
    )


def test_the_id_of_a_job_is_that_of_its_rounds_and_a_runs_path_travels(rounds_file: Path) -> None:
    one, same, more = (load_recipe(rounds_file, [f"rounds.{key}"]) for key in ("count=3", "keep=all", "count=4"))
    assert stable_id("rounds", one, None) == stable_id("rounds", same, None) != stable_id("rounds", more, None)
    assert stable_id("rounds", one, None).startswith("mine-rounds-")
    fit = load_recipe(rounds_file, ["rounds={method: clusterfit, run: runs/other}"])
    assert settled_paths(fit, here=True)["rounds.run"].endswith("/runs/other")
