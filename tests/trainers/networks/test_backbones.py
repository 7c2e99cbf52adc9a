"""Every family gives a vector and a map, at small sizes too, and a gradient reaches all of it."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch.nn import functional as F

from pipeline.errors import UserError
from pipeline.recipe.training import BackboneSection as Spec
from trainers.networks.backbones import Backbone, build_backbone, model_names, seeded

FAMILIES = {
    "alexnet": (4096, 256),
    "vgg11": (4096, 512),
    "googlenet": (1024, 1024),
    "resnet18": (512, 512),
    "densenet121": (1024, 1024),
    "vit_b_16": (768, 768),
}
LARGE = ("vgg11", "vit_b_16")


def build(name: str, size: int = 32, seed: int = 0, **spec: object) -> Backbone:
    return build_backbone(Spec.model_validate({"name": name, **spec}), size, seed)


def images(n: int, size: int) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(size))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(pytest.param(name, 32, marks=[pytest.mark.slow] if name in LARGE else []) for name in FAMILIES),
        ("resnet18", 64),
        *(pytest.param(name, 64, marks=pytest.mark.slow) for name in FAMILIES if name != "resnet18"),
    ],
)
def test_a_family_gives_vector_and_map_and_takes_tiles(name: str, size: int) -> None:
    vector_width, map_width = FAMILIES[name]
    backbone = build(name, size)
    vector, grid, _ = backbone(images(2, size))
    assert vector.shape == (2, vector_width) == (2, backbone.vector_width)
    assert grid.shape == (2, map_width, *backbone.map_size)
    assert backbone.map_width == map_width
    assert min(backbone.map_size) > 1
    (vector.sum() + grid.sum()).backward()
    assert not [path for path, p in backbone.named_parameters() if p.grad is None]

    tile = backbone(images(2, 21)).vector
    assert tile.shape == (2, vector_width)
    assert tile.isfinite().all()


@pytest.mark.parametrize("name", ["resnet18", "alexnet", "googlenet", pytest.param("densenet121", marks=pytest.mark.slow)])
def test_the_small_stem_keeps_four_times_the_positions_or_more(name: str) -> None:
    def positions(stem: str) -> int:
        model = build(name, 64, stem=stem)
        return model.map_size[0] * model.map_size[1]

    assert positions("small") >= 4 * positions("standard")


def test_auto_takes_the_small_stem_up_to_96_pixels() -> None:
    strides = {size: build("resnet10", size).network.conv1.stride for size in (96, 97)}
    assert strides == {96: (1, 1), 97: (2, 2)}


@pytest.mark.parametrize(
    ("name", "last", "layer"), [("resnet18", "fc", "layer3"), ("densenet121", "classifier", "features.denseblock3")]
)
def test_features_are_those_of_torchvisions_network(name: str, last: str, layer: str) -> None:
    backbone = build(name, 64, stem="standard").eval()
    model = torchvision.models.get_model(name, weights=None).eval()
    assert not model.load_state_dict(backbone.network.state_dict(), strict=False).unexpected_keys
    seen: dict[str, torch.Tensor] = {}
    model.get_submodule(last).register_forward_pre_hook(lambda _, args: seen.update(vector=args[0]))
    model.get_submodule(layer).register_forward_hook(lambda _, args, out: seen.update(layer=out.clone()))
    x = images(3, 64)
    with torch.no_grad():
        model(x)
        torch.testing.assert_close(backbone(x).vector, seen["vector"])
        torch.testing.assert_close(backbone.embedding()(x), seen["vector"])
        torch.testing.assert_close(backbone.embedding(layer)(x), seen["layer"].mean((2, 3)))


def test_a_vision_transformers_map_holds_its_patches_in_place() -> None:
    backbone = build("vit_b_16", 32).eval()
    layer = backbone.embedding("encoder.ln")
    x = images(1, 32)
    with torch.no_grad():
        grid = backbone(x).map
        torch.testing.assert_close(layer(x), grid.mean((2, 3)))
        y = x.clone()
        y[:, :, 4:8, 28:32] += 3.0  # the patch in row 1, column 7
        moved = (backbone(y).map - grid).abs().sum(1)[0]
    assert divmod(int(moved.argmax()), 8) == (1, 7)


def test_an_embedding_shares_weights_and_stops_at_its_layer() -> None:
    backbone = build("resnet10")
    layer = backbone.embedding("layer2")
    x = images(2, 32)
    before = layer(x)
    with torch.no_grad():
        backbone.network.get_submodule("layer2.0.conv1").weight.mul_(2)
    assert not torch.equal(layer(x), before)
    assert before.shape == (2, layer.width) == (2, 128)
    assert not [path for path, _ in layer.named_parameters() if "layer3" in path]


def test_an_unknown_layer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"did you mean 'layer4'\?.*layer1, layer2"):
        build("resnet10").embedding("layer5")


@pytest.mark.parametrize(("name", "inside"), [("resnet18", "layer3.0.conv2"), ("googlenet", "inception5b.branch4")])
def test_a_layer_inside_a_branch_is_refused(name: str, inside: str) -> None:
    with pytest.raises(UserError, match="unknown layer"):
        build(name).embedding(inside)


def test_without_the_vector_no_classifier_is_kept_and_its_weights_still_load() -> None:
    whole = build("vgg11", 32, seed=1)
    maps = build_backbone(Spec(name="vgg11"), 32, seed=2, outputs=("map",))
    features = maps(images(2, 32))
    assert features.vector is None
    assert features.map is not None
    assert not [path for path, _ in maps.named_parameters() if "classifier" in path]
    assert maps.embedding()(images(2, 32)).shape == (2, maps.map_width)

    missing = whole.load(maps.state_dict())
    assert missing
    assert all("classifier" in path for path in missing)
    torch.testing.assert_close(whole(images(2, 32)).map, maps(images(2, 32)).map)


def test_weights_load_into_a_backbone_of_fewer_outputs_and_by_torchvisions_names() -> None:
    whole = build("alexnet", 32, seed=1)
    for state in (whole.state_dict(), whole.network.state_dict()):
        maps = build_backbone(Spec(name="alexnet"), 32, seed=2, outputs=("map",))
        assert maps.load(state) == []
        torch.testing.assert_close(whole(images(2, 32)).map, maps(images(2, 32)).map)


def test_another_networks_weights_are_refused() -> None:
    ten, eighteen = build("resnet10"), build("resnet18")
    standard = build("resnet10", stem="standard")
    for network, state in ((ten, eighteen.state_dict()), (eighteen, ten.state_dict()), (ten, standard.state_dict()), (ten, {})):
        with pytest.raises(UserError, match="not of the recipe's backbone"):
            network.load(state)


def test_a_size_that_the_network_cannot_take_is_resized() -> None:
    backbone = build("vgg11", 32).eval()
    x = images(2, 21)
    resized = F.interpolate(x, (32, 32), mode="bilinear", align_corners=False)
    with torch.no_grad():
        assert torch.equal(backbone(x).vector, backbone(resized).vector)
    assert backbone.resized(images(2, 48)).shape[-1] == 48


def test_images_too_small_for_the_network_are_enlarged_to_the_least_size_that_fits() -> None:
    backbone = build("alexnet", 8).eval()
    assert backbone.image_size == 8
    assert 8 < backbone.input_size <= 32
    assert backbone(images(2, 8)).map.shape[2:] == backbone.map_size


def test_weights_are_a_function_of_the_seed_and_leave_torchs_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (build("resnet10", seed=seed).state_dict() for seed in (7, 7, 8))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[path], again[path]) for path in first)
    assert not torch.equal(first["network.conv1.weight"], other["network.conv1.weight"])


def test_the_generator_is_restored_after_an_error() -> None:
    def fail() -> None:
        with seeded(3):
            torch.rand(1)
            raise RuntimeError("inside")

    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"name": "resnet81"}, r"unknown backbone 'resnet81': did you mean 'resnet18'\?"),
        ({"name": "fcn_resnet50"}, "unknown backbone"),
        ({"name": "resnet18", "args": {"depth": 3}}, "args: resnet18 refuses them: .*depth"),
        ({"name": "resnet18", "args": {"weights": "DEFAULT"}}, "random weights"),
        ({"name": "vit_b_32", "stem": "standard"}, "32 px or more"),
    ],
)
def test_what_cannot_be_built_is_refused_in_words(spec: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_backbone(Spec.model_validate(spec), 24, 0)


def test_only_classification_networks_are_offered() -> None:
    names = model_names()
    assert {"resnet10", *FAMILIES} <= set(names)
    assert not {"fcn_resnet50", "maskrcnn_resnet50_fpn", "raft_large"} & set(names)


def test_a_network_whose_builder_computes_with_tensors_can_be_cut() -> None:
    backbone = build_backbone(Spec(name="regnet_y_400mf"), 32, 0)
    assert backbone.vector_width == 440
