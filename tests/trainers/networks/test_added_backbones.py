"""Networks of other packages are found by their entry point and named in `training.backbone.name`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.errors import UserError
from pipeline.recipe.training import BackboneSection
from trainers.networks.backbones import build_backbone, check_backbone, model_names

GROUP = "pseudolabel.backbones"
BUILDERS = """
from torch import nn

def small(width=8):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10),
    )

def text():
    return "a network"

def headless():
    return nn.Sequential(nn.ReLU())

class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x
"""


def spec(name: str, **more: Any) -> BackboneSection:
    return BackboneSection.model_validate({"name": name, **more})


def points(**builders: str) -> dict[str, dict[str, str]]:
    return {GROUP: {name: f"someones_networks:{builder}" for name, builder in builders.items()}}


def test_a_network_of_an_installed_package_is_a_backbone(install) -> None:
    with pytest.raises(UserError, match=r"unknown backbone 'small_cnn'.*and the rest of torchvision's \d+$"):
        check_backbone(spec("small_cnn"), 32)
    install("someones_networks", BUILDERS, points(small_cnn="small"))
    assert "small_cnn" in model_names()
    backbone = build_backbone(spec("small_cnn", args={"width": 4}), 32, seed=1)
    vector, grid, _ = backbone(torch.zeros(2, 3, 32, 32))
    assert vector.shape == (2, 8) == (2, backbone.vector_width)
    assert grid.shape == (2, 8, 8, 8)
    again = build_backbone(spec("small_cnn", args={"width": 4}), 32, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(backbone.parameters(), again.parameters()))


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("small_cnn", {"args": {"depth": 2}}, "training.backbone.args: small_cnn refuses them: .*depth"),
        ("small_cnn", {"args": {"weights": "x"}}, "training.backbone.args.weights: a backbone starts from random weights"),
        ("small_cnn", {"stem": "small"}, "training.backbone.stem: small_cnn has its own first layers"),
        ("absent", {}, "someones_networks adds 'absent' to pseudolabel.backbones .*which cannot be imported"),
        ("text", {}, r"text \(someones_networks:text\) returns a str, not an nn.Module"),
        ("headless", {}, "headless cannot be used: it has no Linear layer"),
        ("branching", {}, "branching cannot be used: torch.fx cannot trace it"),
    ],
)
def test_what_cannot_be_used_is_refused_where_it_is_named(install, name: str, more: dict[str, Any], words: str) -> None:
    builders = points(small_cnn="small", absent="nowhere", text="text", headless="headless", branching="Branching")
    install("someones_networks", BUILDERS, builders)
    check_backbone(spec("resnet10"), 32)  # a recipe without them is not held up
    with pytest.raises(UserError, match=words):
        check_backbone(spec(name, **more), 32)


@pytest.mark.parametrize("name", ["resnet18", "resnet10"])
def test_a_name_that_is_taken_is_refused(install, name: str) -> None:
    install("someones_networks", BUILDERS, points(**{name: "small"}))
    with pytest.raises(UserError, match=f"adds '{name}' to pseudolabel.backbones .*pseudolabel has one of that name"):
        model_names()
