"""Layers that pretraining did not train are not probed, and differences from the pretraining's recipe are reported."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.recipe.training import BackboneSection as Spec
from trainers.downstream import finetune
from trainers.downstream.evaluate import feature_bytes, probed_layer
from trainers.downstream.labelled import Labelled, open_labelled
from trainers.downstream.pretrained import Pretrained, read_pretrained
from trainers.networks.backbones import build_backbone
from trainers.running.runs import RunFolder

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def data(labelled: MakeRecipe) -> Callable[..., Labelled]:
    """`data(backbone, **downstream)`: the tiles as a labelled task for a network."""

    def make(name: str, **downstream: Any) -> Labelled:
        opened = open_labelled(labelled(**downstream))
        training = opened.recipe.training.model_copy(update={"backbone": Spec(name=name, stem="standard")})
        return replace(opened, recipe=opened.recipe.model_copy(update={"training": training}))

    return make


def trained(data: Labelled, *outputs: Any) -> Pretrained:
    """What pretraining for these outputs would leave."""
    network = build_backbone(data.recipe.training.backbone, 32, seed=9, outputs=outputs).network
    return Pretrained(network.state_dict(), "x", ("occlusion",), {})


@pytest.mark.parametrize(
    ("name", "deepest", "beyond"),
    [("resnet10", "layer3", "layer4"), ("alexnet", "features.11", "classifier.2")],
)
def test_where_only_a_map_was_trained_the_deepest_trained_layer_is_probed(
    data: Callable[..., Labelled], name: str, deepest: str, beyond: str
) -> None:
    task = data(name)
    assert probed_layer(task, trained(task, "vector", "map")) is None
    assert probed_layer(task, trained(task, "map")) == deepest
    asked = data(name, layer=beyond)
    with pytest.raises(UserError, match=rf"{beyond} was not trained: .*\(occlusion\).* take {deepest} or a layer before it"):
        probed_layer(asked, trained(asked, "map"))
    assert probed_layer(asked, trained(asked, "vector", "map")) == beyond


def test_a_layer_that_is_not_there_is_refused(data: Callable[..., Labelled]) -> None:
    task = data("resnet10", layer="layer5")
    with pytest.raises(UserError, match=r"downstream\.layer: .*did you mean 'layer4'"):
        probed_layer(task, trained(task, "vector"))


def test_tuning_says_which_layers_start_random(data: Callable[..., Labelled], caplog: pytest.LogCaptureFixture) -> None:
    task = data("resnet10")
    assert finetune._untrained(task, trained(task, "vector").weights) == []
    assert not caplog.records
    assert finetune._untrained(task, trained(task, "map").weights) == ["layer4"]
    assert "did not reach these layers, which start random in both: layer4" in caplog.text


def test_checkpoints_that_began_from_another_backbone_are_not_gone_on_with(labelled: MakeRecipe) -> None:
    folder = RunFolder(labelled())
    folder.make()
    checkpoints = Path(folder.checkpoints("finetune-random"))
    kept = f"{checkpoints.name}/step.json"
    folder.write_json("finetune.json", {"pretraining": "first"})
    for pretraining, there in (("first", True), ("second", False), ("second", True)):
        checkpoints.mkdir(parents=True, exist_ok=True)
        folder.write_json(kept, {})
        finetune._forget_other(folder, pretraining)
        assert (folder.read_json(kept) is not None) == there


def test_another_recipe_than_the_pretrainings_is_said_in_a_line(run_recipe: MakeRecipe, caplog: pytest.LogCaptureFixture) -> None:
    first, here = run_recipe(epochs=6), run_recipe(epochs=30, workers=1)
    folder = RunFolder(first)
    folder.make()
    folder.write_json("recipe.json", first.model_dump(mode="json"))
    saved = {"backbone": {"w": torch.ones(1)}, "spec": first.training.backbone.model_dump()}
    folder.write_weights("backbone.pt", {**saved, "identity": folder.identity("pretrain")})
    with caplog.at_level(logging.WARNING):
        assert read_pretrained(run_recipe(epochs=6)).differs == {}
        assert read_pretrained(run_recipe(epochs=6, workers=1)).differs == {"training.workers": [0, 1]}
        assert not caplog.records  # where it runs changes no result
        found = read_pretrained(here)
    assert found.differs == {"training.epochs": [6, 30], "training.workers": [0, 1]}
    assert set(found.tasks) == {"jigsaw", "rotation"}
    [record] = caplog.records
    assert "was pretrained with another recipe: training.epochs (was 6, now 30)" in record.getMessage()


def test_layers_side_by_side_are_their_vectors_one_after_another(data: Callable[..., Labelled]) -> None:
    network = build_backbone(Spec(name="resnet10", stem="small"), 32, seed=2).eval()
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    layers = ("layer4", None, "layer2")
    together = network.embedding(*layers)
    alone = [network.embedding(layer) for layer in layers]
    with torch.inference_mode():
        torch.testing.assert_close(together(x), torch.cat([one(x) for one in alone], 1), rtol=0, atol=0)
    assert together.width == sum(one.width for one in alone)


def test_concatenated_layers_must_be_there_and_trained(data: Callable[..., Labelled]) -> None:
    task = data("resnet10", protocols=["concatenated"], layers=["layer2", "layer3"])
    assert probed_layer(task, trained(task, "map")) == "layer3"
    for layers, words in (
        (["layer3", "layer4"], r"downstream\.layers: layer4 was not trained"),
        (["layer3", "no"], r"layers: .*'no'"),
    ):
        wrong = data("resnet10", protocols=["concatenated"], layers=layers)
        with pytest.raises(UserError, match=words):
            probed_layer(wrong, trained(wrong, "map"))


@pytest.mark.parametrize(
    "wrong", [{"protocols": ["concatenated"]}, {"layers": ["layer2", "layer3"]}, {"protocols": ["knn", "knn"]}]
)
def test_protocols_and_layers_that_do_not_fit_are_refused(data: Callable[..., Labelled], wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="downstream: "):
        data("resnet10", **wrong)


def test_the_bytes_of_all_features_are_known_before_they_are_computed(data: Callable[..., Labelled]) -> None:
    """72 training and 72 test images, float32, two starts: a layer of 256 channels, two layers, a map of 2 x 2 x 256."""
    task = data("resnet10", protocols=["linear", "concatenated", "attentive"], layers=["layer2", "layer3"])
    assert feature_bytes(task, "layer3") == 144 * 4 * (512 + 2 * (256 + 128 + 256 + 4 * 256))
    assert feature_bytes(task, "layer3", ["random"]) == 144 * 4 * (512 + 256 + 128 + 256 + 4 * 256)
