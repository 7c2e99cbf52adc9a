"""The discriminator scores patches of each sample by itself, and its spectral norm is a state that moves once a step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from trainers.networks.precision import autocast
from trainers.objectives.discriminator import PatchDiscriminator, SpectralConv


def singular_value(layer: nn.Conv2d) -> float:
    return torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item()


def test_the_weights_of_a_spectral_convolution_have_the_largest_singular_value_one() -> None:
    torch.manual_seed(0)
    layer = SpectralConv(5, 8, 4, 2)
    for _ in range(50):
        layer.advance()
    x = torch.randn(2, 5, 12, 12)
    expected = nn.functional.conv2d(x, layer.weight / singular_value(layer), layer.bias, stride=2, padding=1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_its_gradient_is_that_of_torchs_own_spectral_norm() -> None:
    torch.manual_seed(0)
    ours, theirs = SpectralConv(3, 6, 3), nn.Conv2d(3, 6, 3, padding=1)
    theirs.load_state_dict({"weight": ours.weight, "bias": ours.bias})
    theirs = parametrizations.spectral_norm(theirs).eval()  # in training it would move on with each pass
    state = theirs.parametrizations.weight[0]
    with torch.no_grad():
        state._u.copy_(ours.singular)
        state._v.copy_(nn.functional.normalize(ours.weight.flatten(1).T @ ours.singular, dim=0))
    x = torch.randn(2, 3, 8, 8)
    for layer in (ours, theirs):
        layer(x).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.parametrizations.weight.original.grad)


def test_passes_change_nothing_and_a_step_moves_every_layer_on() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(4, 32, 8, 3, spectral=True)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn(weight.shape), alpha=0.1)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    assert len(before) == 5
    x = torch.rand(2, 3, 32, 32)
    one, again = (network(x, x[:, :1]) for _ in range(2))
    assert torch.equal(one, again)
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
    network.advance()
    moved = {name for name, buffer in network.named_buffers() if not torch.equal(buffer, before[name])}
    assert moved == before.keys() - {"last.singular"}  # of one row, whose singular vector is 1


@pytest.mark.parametrize("spectral", [True, False])
def test_a_sample_s_scores_do_not_depend_on_its_batch(spectral: bool) -> None:
    torch.manual_seed(0)
    network, x = PatchDiscriminator(6, 32, 8, 3, spectral), torch.rand(4, 6, 32, 32)
    together = network(x[:, :3], x[:, 3:])
    assert together.shape == (4, 16)
    torch.testing.assert_close(network(x[1:2, :3], x[1:2, 3:]), together[1:2])
    assert not any(isinstance(layer, nn.modules.batchnorm._NormBase) for layer in network.modules())


@pytest.mark.parametrize(("size", "patches"), [(8, 4), (16, 4), (32, 4), (33, 4), (64, 8), (96, 12), (224, 28)])
def test_small_images_have_four_by_four_scores_and_large_ones_more(size: int, patches: int) -> None:
    network = PatchDiscriminator(3, size, 2, 3, spectral=True)
    x = torch.rand(1, 3, size, size)
    assert network(x, x[:, :0]).shape == (1, patches**2)


def test_it_computes_in_bfloat16_with_its_norms_in_float32() -> None:
    torch.manual_seed(0)
    network, x = PatchDiscriminator(3, 32, 8, 3, spectral=True), torch.rand(2, 3, 32, 32)
    exact = network(x, x[:, :0])
    with autocast("cpu", "bfloat16"):
        quick = network(x, x[:, :0])
    assert quick.dtype is torch.float32
    assert 0 < (quick - exact).norm() / exact.norm() < 0.03
