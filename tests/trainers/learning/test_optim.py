"""The rate rises and falls as described, and decay spares biases and norms."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn

from pipeline.recipe.training import Optimizer
from trainers.learning.optim import build_optimizer, place


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


@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 10), (1.0, 10), (0.05, 1), (1.0, 1), (0.5, 2)])
def test_any_warm_up_fits_any_number_of_steps(warmup: float, steps: int) -> None:
    seen = rates(Optimizer(lr=1.0, warmup=warmup), steps)
    assert all(0 < rate <= 1 for rate in seen[:-1])
    assert seen[-1] < seen[-2]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
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
