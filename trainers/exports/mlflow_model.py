"""Logs a finished run's backbone to MLflow: an ONNX network with its signature, registered under the recipe's name."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from pipeline.recipe.schema import Recipe
from trainers.exports.export import export
from trainers.running.runs import RunFolder

ALIAS = "pretrained"
"""The alias of a model's newest version: `models:/<name of the recipe>@pretrained`."""


def log_backbone(recipe: Recipe) -> None:
    """Log the backbone of the recipe's finished run to the MLflow run that is going on, and make it the one with the alias.

    It is the export to ONNX, compared with the backbone as every export is: MLflow's own form for torch is a pickle, which this
    project neither writes nor reads. The model card is an artifact of the run.

    Raises:
        UserError: packages are missing.
        RunError: the exported network computes something else.
        mlflow.exceptions.MlflowException: the store cannot be written, or has no registry.
    """
    import mlflow.onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    with tempfile.TemporaryDirectory() as place:
        found = export(RunFolder(recipe).url, "onnx", place)
        import onnx

        kind = np.dtype(np.float32)
        logged = mlflow.onnx.log_model(
            onnx.load(Path(place, "model.onnx")),
            name="backbone",
            signature=ModelSignature(
                Schema([TensorSpec(kind, (-1, 3, found.size, found.size), "images")]),
                Schema([TensorSpec(kind, (-1, found.width), "features")]),
            ),
            pip_requirements=["onnx", "onnxruntime"],
            registered_model_name=recipe.name,
        )
        mlflow.log_artifact(str(Path(place, "README.md")))
    mlflow.MlflowClient().set_registered_model_alias(recipe.name, ALIAS, logged.registered_model_version)
