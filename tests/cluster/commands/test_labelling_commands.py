"""`pseudolabel embed`, `cluster` and `verify` of what they wrote: what they print, their results, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import Result

from pipeline.recipe import load_recipe
from tests.trainers.labelling.conftest import random_weights
from trainers.downstream.classifier import Classifier
from trainers.labelling.embed import embed
from trainers.labelling.label import label
from trainers.running.runs import RunFolder

Call = Callable[..., Result]
Refused = Callable[..., str]


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_embed_says_how_far_it_is_and_the_same_command_goes_on(call: Call, recipe_file: Path, tmp_path: Path) -> None:
    weights = random_weights(load_recipe(recipe_file), tmp_path)
    words = ("embed", recipe_file, "--out", tmp_path / "features", "--weights", weights, "--set", "placement.cpus=0.5")
    result = call(*words)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("embedding: ")]
    assert lines[-1].startswith("embedding: 8 of 8 shards, 72 of 72 samples, ")
    assert "8 of 8, 8 by this run" in result.stdout
    assert "8 of 8, 0 by this run" in call(*words).stdout
    left = json.loads((tmp_path / "features.embed.result.json").read_text())
    assert left["counts"] == {"shards": 8, "made": 0, "samples": 72, "features": 72, "quarantined": 0, "failed": 0}
    assert all(Path(url).exists() for url in left["artefacts"].values())


def test_cluster_prints_its_report_and_verify_agrees(call: Call, refused: Refused, recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file)
    embed(recipe, str(tmp_path / "features"), weights=random_weights(recipe, tmp_path), here=True)
    several = ("--k", "4", "--k", "6", "--pca", "5", "--no-whiten", "--sheet", tmp_path / "sheet.png")
    words = ("cluster", tmp_path / "features", *several, "--out", tmp_path / "clusters")
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert "72 of 72, 0 quarantined" in result.stdout
    assert "label_2" in result.stdout
    assert "5, " in result.stdout.partition("components")[2].partition("\n")[0]
    assert Image.open(tmp_path / "sheet.png").height > 4 * 96
    assert "% mutual information, " in result.stdout
    report = json.loads(call(*words, "--json").stdout)
    assert [sum(one["sizes"]) for one in (report, *report["more"])] == [72, 72]
    left = json.loads((tmp_path / "clusters.cluster.result.json").read_text())
    assert (left["counts"]["clusters"], left["counts"]["labels"], left["counts"]["made"]) == (4, 72, 0)
    assert left["metrics"]["labels/purity"] == report["labels"]["purity"]
    for folder, holds in (("features", "features"), ("clusters", "labels")):
        checked = call("verify", tmp_path / folder)
        assert checked.exit_code == 0, checked.output
        assert f"{holds}  " in checked.stdout
    (tmp_path / "clusters" / "centroids.npy").write_bytes(b"others")
    broken = call("verify", tmp_path / "clusters")
    assert broken.exit_code == 1
    assert "centroids.npy" in broken.stdout
    assert "holds labels, not features" in refused(2, "cluster", tmp_path / "clusters", "--k", "4", "--out", tmp_path / "more")


@pytest.mark.usefixtures("local_ray")
def test_label_prints_its_report(call: Call, recipe_file: Path, tmp_path: Path) -> None:
    """The labels are made without actors; `embed` above has some."""
    recipe = load_recipe(recipe_file)
    RunFolder(recipe).make()
    saved = {"classifier": Classifier(recipe, 2, None).state_dict(), "classes": ["one", "other"]}
    RunFolder(recipe).write_weights("classifier.pt", saved)
    label(recipe, str(tmp_path / "named"), here=True)
    words = ("label", recipe_file, "--out", tmp_path / "named", "--set", "placement.cpus=0.5", "--per-class", "5")
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert "72 of 72, 0 quarantined" in result.stdout
    assert "most frequent" in result.stdout
    assert f"{tmp_path / 'named' / 'kept'}" in result.stdout.replace("\n", "")
    report = json.loads(call(*words, "--json").stdout)
    assert sum(report["sizes"]) == 72
    assert max(report["kept"]["sizes"]) == 5
    left = json.loads((tmp_path / "named.label.result.json").read_text())
    assert (left["counts"]["labels"], left["counts"]["made"]) == (72, 0)
    assert left["metrics"]["confidence"] == report["confidence"]


def test_a_folder_for_chosen_images_is_refused_where_none_are_chosen(refused: Refused, recipe_file: Path, tmp_path: Path) -> None:
    words = ("label", recipe_file, "--out", tmp_path / "named", "--kept", tmp_path / "kept")
    assert "--kept names a folder for what --least or --per-class choose: give one of these, too" in refused(2, *words)


def test_embed_says_before_any_work_that_there_are_no_weights(refused: Refused, recipe_file: Path, tmp_path: Path) -> None:
    words = ("embed", recipe_file, "--out", tmp_path / "out", "--weights", tmp_path / "none.pt", "--set", "placement.cpus=0.5")
    assert "no weights at" in refused(2, *words)
