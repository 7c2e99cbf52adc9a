"""Batch normalisation is tested with the statistics of each layer's inputs on plain images, on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.recipe import Recipe
from pipeline.recipe.training import BackboneSection as Spec
from trainers.downstream import statistics
from trainers.downstream.passes import Batch
from trainers.downstream.statistics import remeasure
from trainers.networks.backbones import build_backbone
from trainers.networks.inputs import Normaliser


def split(images: np.ndarray, size: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
    """A rank's share of batches of so many images."""
    for start in range(0, len(images), size):
        mine = torch.from_numpy(images[start : start + size][rank::world])
        yield Batch(np.zeros(len(mine), np.uint64), np.zeros(len(mine), np.int64), mine)


def network(name: str = "resnet10", layer: str | None = "layer3") -> nn.Module:
    return build_backbone(Spec(name=name), 32, seed=0).embedding(layer)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_each_layer_then_puts_out_channels_of_mean_0_and_deviation_1(
    recipe: Callable[..., Recipe], crops: Callable[[int, int], np.ndarray]
) -> None:
    spec, embedding = recipe("rotation", precision="float32"), network()
    before, seen = state(embedding), {}
    remeasure({"it": embedding}, split(crops(40, 32), 40), spec)
    for name, layer in embedding.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.detach().clone()}))
    embedding(Normaliser(spec.image.mean, spec.image.std)(torch.from_numpy(crops(40, 32))))
    assert len(seen) == 9
    for name, out in seen.items():
        deviation, mean = torch.std_mean(out, (0, 2, 3), correction=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-3, rtol=0, msg=name)
        torch.testing.assert_close(deviation, torch.ones_like(deviation), atol=0.05, rtol=0, msg=name)
    after = state(embedding)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith(("running_mean", "running_var"))}


def test_of_one_batch_they_are_those_of_torchs_own_tool(
    recipe: Callable[..., Recipe], crops: Callable[[int, int], np.ndarray]
) -> None:
    spec, embedding, theirs = recipe("rotation", precision="float32"), network(), network()
    images, pixels = crops(40, 32), Normaliser(spec.image.mean, spec.image.std)
    remeasure({"it": embedding}, split(images, 40), spec)
    torch.optim.swa_utils.update_bn((pixels(batch.image) for batch in split(images, 40)), theirs)
    for name, value in state(theirs).items():
        if "running" in name:
            torch.testing.assert_close(state(embedding)[name], value, rtol=0.01, atol=1e-4, msg=name)


def test_they_do_not_depend_on_the_number_of_ranks(
    recipe: Callable[..., Recipe], crops: Callable[[int, int], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three ranks in threads that add up as gloo would; the last batch leaves one of them nothing to do."""
    spec, alone, ranks = recipe("rotation", precision="float32"), network(), [network() for _ in range(3)]
    images = crops(38, 32)
    remeasure({"it": alone}, split(images, 12), spec)
    met, sums = Barrier(3), {}

    def run(rank: int) -> None:
        remeasure({"it": ranks[rank]}, split(images, 12, rank, 3), spec, world=3)

    def summed(values: torch.Tensor, world: int) -> torch.Tensor:
        place = met.wait()
        sums[place] = values
        met.wait()
        total = sum(sums[n] for n in range(world))
        met.wait()
        return total

    monkeypatch.setattr(statistics, "summed", summed)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, range(3)))
    for rank in ranks:
        for name, value in state(rank).items():
            torch.testing.assert_close(value, state(alone)[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_network_without_batch_normalisation_is_left_alone_and_not_run(recipe: Callable[..., Recipe]) -> None:
    def none() -> Any:
        raise AssertionError("no image is wanted")
        yield

    vgg = network("vgg11", None)
    before = state(vgg)
    remeasure({"it": vgg}, none(), recipe("rotation"))
    assert all(torch.equal(value, before[name]) for name, value in state(vgg).items())
