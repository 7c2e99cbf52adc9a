"""Every objective stays on its pixels' device, here a fake CUDA device (shapes without values): no tensor of the host is mixed
in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from pipeline.recipe import Recipe
from pipeline.tasks import registry
from trainers.learning.loop import _StepTally
from trainers.learning.pretext import PretextModel
from trainers.networks.inputs import decodable, to_device
from trainers.objectives import objective_class

CUDA = torch.device("cuda")


def moved(network: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """The network on the fake device."""
    for module in network.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    shape = mode.from_tensor(tensor.detach())
                    with mode:
                        there = shape.to(CUDA)
                        held[name] = nn.Parameter(there) if held is module._parameters else there
    return network


@pytest.fixture
def mode(monkeypatch: pytest.MonkeyPatch) -> FakeTensorMode:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)  # needs a driver
    return FakeTensorMode(shape_env=ShapeEnv())


def one_an_objective() -> tuple[str, ...]:
    """The first task of each objective."""
    return tuple({objective_class(task()): name for name, task in reversed(registry().items())}.values())


@pytest.mark.parametrize(
    ("tasks", "backbone"),
    [
        pytest.param(("rotation",), "resnet10", id="batch normalisation"),
        pytest.param(one_an_objective(), "squeezenet1_1", id="one an objective"),
        pytest.param(tuple(registry()), "resnet10", id="all", marks=pytest.mark.slow),
    ],
)
def test_losses_and_metrics_of_every_task_are_made_where_the_pixels_are(
    recipe: Callable[..., Recipe], rendered: Callable[..., Any], mode: FakeTensorMode, tasks: tuple[str, ...], backbone: str
) -> None:
    host = {name: column.numpy() for name, column in rendered(*tasks, n=8).items()}
    host["weight"][[1, 4]] = 0
    model = moved(PretextModel(recipe(*((task, {}) for task in tasks), backbone=backbone), seed=0), mode)
    with mode:
        pixels = {
            name: torch.empty(column.shape, dtype=torch.uint8, device=CUDA) for name, column in host.items() if _pixels(name)
        }
        columns = {**host, **pixels}
        batch = to_device(decodable(columns), CUDA)
        assert {(len(column), column.device.type) for column in batch.values()} == {(6, "cuda")}
        outcomes = model(batch)
        tally = _StepTally(tasks, CUDA)
        tally.add(outcomes, columns)
        made = {name: {outcome.minimised.device.type, tally.values.device.type} for name, outcome in outcomes.items()}
    assert made == {name: {"cuda"} for name in tasks}


def test_a_tensor_of_the_host_would_be_found(mode: FakeTensorMode) -> None:
    with mode, pytest.raises(RuntimeError, match="device"):
        torch.ones(3, device=CUDA) + torch.ones(3)


def _pixels(name: str) -> bool:
    return name == "image" or name.endswith((".input", ".small"))
