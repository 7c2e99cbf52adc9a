"""Folders of finished runs, made without training: weights are drawn, and the statistics of batch normalisation are moved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.recipe import parse_recipe
from trainers.networks.backbones import Output, build_backbone
from trainers.running.runs import RunFolder

MakeRun = Callable[..., str]


@pytest.fixture
def finished(tmp_path: Path) -> MakeRun:
    """`finished(name, size=32, outputs=..., **backbone)`: the folder of a run with that backbone."""

    def make(name: str, size: int = 32, outputs: tuple[Output, ...] = ("vector", "map"), **backbone: Any) -> str:
        document = {
            "name": f"{name}-{size}",
            "seed": 1,
            "corpus": {"shards": "shards/photos"},
            "image": {"size": size, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]},
            "tasks": {"rotation": {}},
            "training": {"backbone": {"name": name, **backbone}},
            "storage": {"runs": str(tmp_path / "runs")},
        }
        recipe = parse_recipe(document)
        spec, folder = recipe.training.backbone, RunFolder(recipe)
        network = build_backbone(spec, size, 1, outputs)
        generator = torch.Generator().manual_seed(2)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(std=0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)  # smaller ones let deep networks amplify rounding
        folder.make()
        identity = folder.identity("pretrain")
        state = {"backbone": network.network.state_dict(), "spec": spec.model_dump(), "identity": identity}
        folder.write_weights("backbone.pt", state)
        folder.write_json("recipe.json", recipe.model_dump(mode="json"))
        about = {"test": ["t"], "classes": 3, "tested": 60, "total": 60, "chance": 1 / 3, "labels": 72}
        row = {"init": "pretrained", "protocol": "linear", "layer": "layer3", "accuracy": 0.8125, "standard_error": 0.05, **about}
        folder.write_json("evaluate.json", {"pretraining": identity, "downstream": [row]})
        task = {"loss": [1.0], "metric": 0.9, "trivial": 0.25}
        folder.write_json(
            "pretrain.json",
            {
                "identity": identity,
                "recipe_sha256": recipe.digest(),
                "steps": 7,
                "stages": {"samples": 56},
                "tasks": {"rotation": task},
            },
        )
        return folder.url

    return make
