"""The rate rises and falls as described, and decay spares biases and norms."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

from pipeline.recipe.training import Optimizer
from trainers.learning.optim import build_optimizer, learning_rate, place, set_weight_decay


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def rates(spec: Optimizer, steps: int) -> list[float]:
    optimizer, scheduler = build_optimizer(spec, network(), steps)
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(steps):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return [*seen, optimizer.param_groups[0]["lr"]]


def test_the_rate_rises_in_a_line_and_falls_as_a_cosine_to_zero() -> None:
    seen = rates(Optimizer(lr=0.4, warmup=0.25), steps=40)
    expected = [0.4 * (i + 1) / 11 for i in range(10)] + [0.2 * (1 + math.cos(math.pi * i / 30)) for i in range(31)]
    assert seen == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("scale", ["none", "linear"])
def test_the_rate_of_a_step_can_be_told_without_the_steps_before(warmup: float, scale: str) -> None:
    spec = Optimizer(lr=0.4, warmup=warmup, scale=scale)
    told = [learning_rate(spec, step, 20) for step in range(21)]
    assert told == pytest.approx(rates(spec, 20), abs=1e-9)
    assert learning_rate(spec, 7, 20, batch=1024) == pytest.approx(told[7] * (4 if scale == "linear" else 1))


@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 10), (1.0, 10), (0.05, 1), (1.0, 1), (0.5, 2)])
def test_any_warm_up_fits_any_number_of_steps(warmup: float, steps: int) -> None:
    seen = rates(Optimizer(lr=1.0, warmup=warmup), steps)
    assert all(0 < rate <= 1 for rate in seen[:-1])
    assert seen[-1] < seen[-2]


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_decay_goes_to_its_end_along_half_a_cosine_and_depends_on_the_step_alone(name: str) -> None:
    spec = Optimizer(name=name, weight_decay=0.04, weight_decay_end=0.4)
    optimizer, _ = build_optimizer(spec, network(), 100)
    for step in (50, 0, 25, 100):  # in any order: a run that resumes needs no state of it
        set_weight_decay(optimizer, spec, step, 100)
        expected = 0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * step / 100)) / 2  # as in the code of DINO
        assert [group["weight_decay"] for group in optimizer.param_groups] == [pytest.approx(expected), 0]
    constant = Optimizer(name=name, weight_decay=0.04)
    optimizer, _ = build_optimizer(constant, network(), 100)
    set_weight_decay(optimizer, constant, 50, 100)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.04, 0]


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_decay_shrinks_matrices_and_spares_biases_and_norms(name: str) -> None:
    module = network()
    optimizer, _ = build_optimizer(Optimizer(name=name, lr=0.1, weight_decay=0.5, warmup=0), module, 10)
    before = {path: p.detach().clone() for path, p in module.named_parameters()}
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = {path for path, p in module.named_parameters() if not torch.equal(p, before[path])}
    assert moved == {"0.weight", "3.weight"}


def test_a_restored_schedule_goes_on_where_it_was() -> None:
    spec = Optimizer(lr=0.3, warmup=0.2)
    whole = rates(spec, 20)
    optimizer, scheduler = build_optimizer(spec, network(), 20)
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    again, resumed = build_optimizer(spec, network(), 20)
    again.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    seen = []
    for _ in range(13):
        seen.append(again.param_groups[0]["lr"])
        again.step()
        resumed.step()
    assert seen == pytest.approx(whole[7:20], abs=1e-12)


def test_place_puts_convolutions_in_the_layout_of_their_inputs() -> None:
    module = place(network(), "cpu")
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_each_optimizer_has_its_usual_decay_and_one_that_is_named_stays() -> None:
    assert [Optimizer(name=name).weight_decay for name in ("adamw", "sgd", "lars")] == [0.05, 1e-4, 1e-6]
    assert Optimizer(name="sgd", weight_decay=0).weight_decay == 0
    assert Optimizer().model_dump() == {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05, "momentum": 0.9, "warmup": 0.05}
    assert set(Optimizer(clip=3, scale="linear", weight_decay_end=0.4).model_dump()) >= {"clip", "scale", "weight_decay_end"}
    assert Optimizer.model_validate(Optimizer(name="sgd").model_dump()) == Optimizer(name="sgd")


@pytest.mark.parametrize(("scale", "expected"), [("none", 0.3), ("linear", 1.2), ("sqrt", 0.6)])
def test_the_rate_is_scaled_by_the_batch(scale: str, expected: float) -> None:
    optimizer, _ = build_optimizer(Optimizer(lr=0.3, scale=scale, warmup=0), network(), 10, batch=1024)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected] * 2)


def test_lars_moves_a_layer_in_proportion_to_its_weights_and_a_bias_by_its_gradient() -> None:
    module = nn.Linear(3, 2)
    optimizer, scheduler = build_optimizer(Optimizer(name="lars", lr=0.5, weight_decay=0.1, warmup=0), module, 1000)
    weight, bias = (p.detach().double() for p in (module.weight, module.bias))
    moved, shifted = torch.zeros(2, 3).double(), torch.zeros(2).double()
    for rate in (0.5, scheduler.get_last_lr()[0]):
        module.weight.grad, module.bias.grad = torch.full((2, 3), 4.0), torch.ones(2)
        update = 4 + 0.1 * weight
        moved = 0.9 * moved + 0.001 * weight.norm() / update.norm() * update
        shifted = 0.9 * shifted + 1
        weight, bias = weight - rate * moved, bias - rate * shifted
        optimizer.step()
    torch.testing.assert_close(module.weight.double(), weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(module.bias.double(), bias, rtol=1e-5, atol=1e-6)


def test_lars_leaves_alone_what_has_no_gradient_or_no_size() -> None:
    module = nn.Linear(3, 2)
    optimizer, _ = build_optimizer(Optimizer(name="lars", lr=0.5, warmup=0), module, 10)
    before = module.weight.detach().clone()
    module.bias.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(module.weight, before)
    module.weight.data.zero_()
    module.weight.grad = torch.ones(2, 3)
    optimizer.step()
    torch.testing.assert_close(module.weight, torch.full((2, 3), -0.5))


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_a_layer_can_be_fixed_in_the_first_steps(name: str) -> None:
    module = network()
    optimizer, _ = build_optimizer(Optimizer(name=name, lr=0.1), module, steps=4)
    start = module[3].weight.detach().clone()
    for step in range(4):
        optimizer.zero_grad(set_to_none=True)
        module(torch.ones(2, 3, 3, 3)).square().sum().backward()
        if step < 2:
            module[3].weight.grad = None
        optimizer.step()
        assert torch.equal(module[3].weight, start) == (step < 2)
