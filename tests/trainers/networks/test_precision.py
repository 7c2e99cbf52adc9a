"""Products in bfloat16 agree with float32 on every processor, and any that do not are found before training."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.recipe.training import BackboneSection
from trainers.learning.optim import place
from trainers.learning.pretext import PretextModel
from trainers.networks import precision
from trainers.networks.backbones import build_backbone
from trainers.networks.inputs import to_device
from trainers.networks.precision import autocast, checked, compute_dtype, disagreements, idle_taps, in_float32

FAMILIES = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet10",
    "resnet50",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "vgg11",
    "vit_b_32",
)
QUICK = ("resnet10", "mobilenet_v3_small", "shufflenet_v2_x0_5", "vit_b_32")

needs_bfloat16 = pytest.mark.skipif(
    compute_dtype("cpu", "auto") is torch.float32, reason="this processor has no instructions for bfloat16"
)


def has_idle_taps_by_counting(n: int, k: int, s: int, p: int, d: int) -> bool:
    """Convolve ones with each weight alone: a weight that meets padding only gives zero everywhere."""
    for tap in range(k):
        kernel = torch.zeros(1, 1, k)
        kernel[0, 0, tap] = 1
        if F.conv1d(torch.ones(1, 1, n), kernel, stride=s, padding=p, dilation=d).count_nonzero() == 0:
            return True
    return False


@settings(max_examples=200, deadline=None)
@given(*(st.integers(1, most) for most in (12, 7, 4)), st.integers(0, 5), st.integers(1, 3))
def test_idle_taps_are_the_weights_that_meet_padding_only(n: int, k: int, s: int, p: int, d: int) -> None:
    if n + 2 * p < d * (k - 1) + 1:
        return  # torch refuses it
    assert idle_taps((n,), (k,), s, p, d) == has_idle_taps_by_counting(n, k, s, p, d)


def test_idle_taps_know_the_paddings_that_have_names_and_look_at_every_axis() -> None:
    assert not idle_taps((1, 1), (1, 1), 1, "same", 1)
    assert idle_taps((1, 1), (3, 3), 1, "same", 1)
    assert idle_taps((8, 1), (3, 3), (1, 1), (1, 1))
    assert not idle_taps((8, 1), (3, 1), (1, 1), (1, 0))
    assert not idle_taps((3, 3), (3, 3), 1, "valid", 1)


CONVOLUTIONS = [
    (cin, k, s, n, groups)
    for cin, k, s, n, groups in itertools.product((32, 64), (3, 7), (1, 2, 4), (1, 2, 3), (1, 32))
    if n + 2 * (k // 2) >= k
]


@pytest.mark.parametrize(("cin", "k", "s", "n", "groups"), CONVOLUTIONS)
def test_every_weight_of_a_small_map_s_convolution_gets_its_gradient(cin: int, k: int, s: int, n: int, groups: int) -> None:
    """In memory that holds NaN before it is written, compared with float64."""
    torch.manual_seed(0)
    conv = nn.Conv2d(cin, 64, k, s, k // 2, groups=groups, bias=False).to(memory_format=torch.channels_last)
    x = torch.randn(16, cin, n, n).contiguous(memory_format=torch.channels_last)
    with precision._memory_filled(torch.device("cpu")):
        with autocast("cpu", "bfloat16"):
            y = conv(x)
        seed = torch.randn(y.shape)
        (found,) = torch.autograd.grad(y, [conv.weight], seed.to(y.dtype))
    weight = conv.weight.detach().double().requires_grad_()
    exact = F.conv2d(x.double(), weight, None, s, k // 2, 1, groups)
    (wanted,) = torch.autograd.grad(exact, [weight], seed.double())
    assert (found - wanted).norm() <= 0.02 * wanted.norm()


@needs_bfloat16
def test_convolutions_without_idle_taps_stay_in_bfloat16() -> None:
    conv = nn.Conv2d(8, 8, 3, 2, 1)
    with autocast("cpu", "bfloat16"):
        assert conv(torch.zeros(2, 8, 4, 4)).dtype is torch.bfloat16
        assert conv(torch.zeros(2, 8, 1, 1)).dtype is torch.float32


def products_of(name: str, size: int) -> list[str]:
    network = place(
        build_backbone(BackboneSection(name=name, stem="small" if name.startswith("vit") else "standard"), size, 0), "cpu"
    ).eval()
    x = torch.randn(4, 3, size, size).contiguous(memory_format=torch.channels_last)
    return disagreements("cpu", lambda: network(x))


@needs_bfloat16
@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("name", QUICK)
def test_a_backbone_s_products_and_gradients_are_those_of_float32(name: str, size: int) -> None:
    assert products_of(name, size) == []


@pytest.mark.slow
@needs_bfloat16
@pytest.mark.parametrize("size", [8, 9, 16, 21, 32, 48, 64, 96])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_s_products_and_gradients_are_those_of_float32(name: str, size: int) -> None:
    assert products_of(name, size) == []


@needs_bfloat16
def test_every_head_s_products_and_gradients_are_those_of_float32(recipe, rendered) -> None:
    names = ("rotation", "jigsaw", "occlusion", "denoising", "quantised_colorization", "corrupted_region")
    tasks = [("jigsaw", {}) if name == "jigsaw" else name for name in names]
    model = place(PretextModel(recipe(*tasks), seed=0), "cpu").eval()
    batch = to_device(rendered(*names, n=4), "cpu")
    assert disagreements("cpu", lambda: model(batch)) == []


def test_a_product_that_leaves_memory_unwritten_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unwritten(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(x, weight)
            return x @ weight.T.to(x.dtype)

        @staticmethod
        def backward(ctx, grown: Tensor) -> tuple[Tensor, Tensor]:
            x, weight = ctx.saved_tensors
            gradient = torch.empty(weight.shape) if grown.dtype is torch.bfloat16 else grown.T @ x
            return grown @ weight.to(grown.dtype), gradient

    @torch.overrides.wrap_torch_function(lambda x, weight: (x, weight))
    def faulty(x: Tensor, weight: Tensor) -> Tensor:
        return Unwritten.apply(x.bfloat16(), weight) if torch.is_autocast_enabled("cpu") else F.linear(x, weight)

    monkeypatch.setattr(precision, "_PRODUCTS", frozenset([faulty]))
    weight = nn.Parameter(torch.zeros(4, 8))
    assert disagreements("cpu", lambda: faulty(torch.ones(2, 8), weight)) == ["faulty(2x8, 4x8) (not finite)"]
    taken, why = checked("cpu", "bfloat16", lambda: faulty(torch.ones(2, 8), weight))
    assert taken == "float32"
    assert why == "bfloat16 is wrong on this processor for faulty(2x8, 4x8) (not finite): it computes in float32"


def test_a_product_that_is_right_is_not_found() -> None:
    layer = nn.Linear(8, 4)
    assert disagreements("cpu", lambda: layer(torch.ones(2, 8))) == []
    assert checked("cpu", "bfloat16", lambda: layer(torch.ones(2, 8))) == ("bfloat16", "")


def test_the_check_leaves_torch_as_it_was() -> None:
    layer = nn.Linear(8, 4)
    before = torch.get_rng_state()
    disagreements("cpu", lambda: layer(torch.ones(2, 8)))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory is True  # torch's own default
    assert layer.weight.grad is None


@pytest.mark.parametrize("wanted", ["auto", "float32", "bfloat16"])
def test_precision_is_what_the_recipe_says(wanted: precision.Precision) -> None:
    assert compute_dtype("cpu", "bfloat16") == torch.bfloat16
    assert compute_dtype("cpu", "float32") == torch.float32
    with autocast("cpu", wanted):
        assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == compute_dtype("cpu", wanted)
        with in_float32("cpu"):
            assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype is torch.float32
