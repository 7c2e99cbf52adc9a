"""A finished backbone is a model of MLflow: with signature, version and alias, and computing what it computes here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pseudolabel
from pipeline.recipe import Recipe, parse_recipe
from trainers.exports.export import BATCHES
from trainers.exports.mlflow_model import log_backbone
from trainers.running.runs import read_json
from trainers.running.tracking import tracked

pytestmark = pytest.mark.slow

MakeRun = Callable[..., str]


@pytest.fixture
def logged(finished: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[Recipe, str]]:
    """`logged(kind)`: the recipe and the folder of a run whose backbone is in a store of that kind."""
    pytest.importorskip("mlflow", reason="the `mlflow` extra is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)  # where a database's artifacts lie

    def make(kind: str) -> tuple[Recipe, str]:
        run = finished("resnet10")
        store = (tmp_path / "mlruns").as_uri() if kind == "folder" else f"sqlite:///{tmp_path}/mlflow.db"
        recipe = parse_recipe({**(read_json(f"{run}/recipe.json") or {}), "tracking": {"tensorboard": False, "mlflow": store}})
        with tracked(recipe, "pretrain"):
            log_backbone(recipe)
        return recipe, run

    return make


@pytest.mark.parametrize("kind", ["folder", "database"])
def test_the_model_with_the_alias_has_a_signature_and_computes_the_backbones_features(
    logged: Callable[[str], tuple[Recipe, str]], kind: str
) -> None:
    import mlflow

    recipe, run = logged(kind)
    model: Any = mlflow.pyfunc.load_model(f"models:/{recipe.name}@pretrained")
    (taken,), (given,) = model.metadata.signature.inputs, model.metadata.signature.outputs
    assert (taken.name, taken.shape, given.name, given.shape) == ("images", (-1, 3, 32, 32), "features", (-1, 512))
    backbone = pseudolabel.load_backbone(run)
    for n in BATCHES:
        images = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(n))
        with torch.no_grad():
            ours = backbone(images).numpy()
        theirs = model.predict({"images": images.numpy()})["features"]
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(ours).max()


def test_the_alias_moves_to_the_newest_version_and_the_card_lies_with_the_run(
    logged: Callable[[str], tuple[Recipe, str]],
) -> None:
    import mlflow

    recipe, _ = logged("folder")
    with tracked(recipe, "pretrain"):
        log_backbone(recipe)
    client = mlflow.MlflowClient(recipe.tracking.mlflow)
    version = client.get_model_version_by_alias(recipe.name, "pretrained")
    assert int(version.version) == 2
    assert "README.md" in [file.path for file in client.list_artifacts(version.run_id)]
