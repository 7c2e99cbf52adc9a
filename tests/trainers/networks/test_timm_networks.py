"""Networks of timm are backbones like torchvision's, and leave as timm's again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import pseudolabel
from pipeline.errors import UserError
from pipeline.recipe.training import BackboneSection
from tests.trainers.exports.conftest import MakeRun, finished  # noqa: F401 - a fixture
from trainers.exports.export import export
from trainers.networks.backbones import build_backbone, check_backbone


def spec(name: str, **more: Any) -> BackboneSection:
    return BackboneSection.model_validate({"provider": "timm", "name": name, **more})


@pytest.mark.parametrize(
    ("name", "size", "vector", "grid"),
    [
        ("resnet10t", 64, 512, (512, 8, 8)),
        ("vit_tiny_patch16_224", 32, 192, (192, 8, 8)),
        ("vit_small_patch14_reg4_dinov2", 28, 384, (384, 9, 9)),
        pytest.param("swin_tiny_patch4_window7_224", 224, 768, (768, 7, 7), marks=pytest.mark.slow),
        ("convnext_atto", 64, 320, (320, 4, 4)),
    ],
)
def test_a_network_gives_vector_and_map_and_a_gradient_reaches_all_of_it(
    name: str, size: int, vector: int, grid: tuple[int, ...]
) -> None:
    args = {"depth": 2} if name.startswith("vit") else {}
    backbone = build_backbone(spec(name, args=args), size, seed=0)
    features = backbone(torch.randn(2, 3, size, size))
    assert features.vector.shape == (2, vector) == (2, backbone.vector_width)
    assert features.map.shape == (2, *grid) == (2, backbone.map_width, *backbone.map_size)
    (features.vector.sum() + features.map.sum()).backward()
    assert not [path for path, weight in backbone.named_parameters() if weight.grad is None]


def test_a_transformers_map_has_its_patches_in_place_behind_all_prefix_tokens() -> None:
    backbone = build_backbone(spec("vit_small_patch14_reg4_dinov2", stem="standard", args={"depth": 1}), 56, seed=0).eval()
    x = torch.randn(1, 3, 56, 56)
    y = x.clone()
    y[:, :, 14:28, 42:56] += 3.0  # the patch in row 1, column 3
    with torch.no_grad():
        moved = (backbone(y).map - backbone(x).map).abs().sum(1)[0]
    assert divmod(int(moved.argmax()), 4) == (1, 3)


def test_features_are_those_of_timms_network() -> None:
    backbone = build_backbone(spec("resnet10t", stem="standard"), 64, seed=0).eval()
    theirs = timm.create_model("resnet10t", num_classes=0).eval()
    theirs.load_state_dict(backbone.network.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(x).vector, theirs(x))


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("resnet18x", {}, r"unknown backbone 'resnet18x'.*resnet18.*and the rest of timm's \d+"),
        ("resnet18", {"args": {"depths": 3}}, "args: resnet18 refuses them"),
        ("resnet18", {"args": {"pretrained": True}}, r"args\.pretrained: weights are given by training\.backbone\.weights"),
        ("mobilevit_xxs", {}, r"torch\.fx cannot trace it"),
    ],
)
def test_what_cannot_be_built_is_refused_in_words(name: str, more: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_backbone(spec(name, **more), 224)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.networks.timm_networks.find_spec", lambda name: None)
    with pytest.raises(
        UserError,
        match=r"timm is not installed: in the project's folder, `pip install .* '\.\[export\]'",
    ):
        check_backbone(spec("resnet26"), 64)


@pytest.mark.parametrize(("name", "args"), [("resnet10t", {}), ("vit_tiny_patch16_224", {"depth": 2})])
def test_a_run_with_a_network_of_timm_leaves_as_such(
    finished: MakeRun,  # noqa: F811
    tmp_path: Path,
    name: str,
    args: dict[str, Any],
) -> None:
    run = finished(name, 112 if name == "resnet10t" else 32, provider="timm", args=args)
    export(run, "timm", str(tmp_path / "out"))
    theirs, ours = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval(), pseudolabel.load_backbone(run)
    size = ours.preprocessing.size
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="timm's network: take --to timm"):
        export(run, "torchvision", str(tmp_path / "other"))
