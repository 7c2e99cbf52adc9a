"""Measures the statistics of batch normalisation again, on plain images, before a network is tested on such images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.recipe.schema import Recipe
from pipeline.rendering.units import UnitSource
from trainers.downstream.labelled import Labelled
from trainers.downstream.passes import Batch
from trainers.learning.ranks import summed
from trainers.networks.inputs import Normaliser
from trainers.networks.precision import autocast

MOST_IMAGES = 16_384
"""How many images are enough: statistics of some thousand differ little from those of all (Wu & Johnson 2021, section 3.1)."""


class _Moments:
    """Sums, by channel, of one layer's inputs and of their squares over all images."""

    def __init__(self, layer: _BatchNorm, world: int) -> None:
        self.layer, self._world = layer, world
        self._total: Tensor = torch.zeros(())

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Hook that runs before the layer, and makes it normalise by the statistics of the step's batch over all ranks."""
        if args[0].is_meta:  # a backbone checks whether it can take images of this size
            return
        x = args[0].detach().float()
        axes = [axis for axis in range(x.ndim) if axis != 1]
        count = x.numel() // x.shape[1]
        sums = torch.zeros(3, x.shape[1], dtype=torch.float64, device=x.device)
        if count:
            variance, mean = (part.double() for part in torch.var_mean(x, axes, correction=0))
            sums = torch.stack([torch.ones_like(mean), mean, variance + mean.square()]) * count
        step = summed(sums, self._world)
        self._total = self._total + step
        self._set(step)

    def finish(self) -> None:
        """Make the layer normalise by the statistics of all its inputs."""
        self._set(self._total)

    def _set(self, sums: Tensor) -> None:
        if not sums.any():
            return
        mean, square = sums[1] / sums[0], sums[2] / sums[0]
        assert self.layer.running_mean is not None
        assert self.layer.running_var is not None
        self.layer.running_mean.copy_(mean)
        self.layer.running_var.copy_((square - mean.square()).clamp_min(0))


def measuring(data: Labelled, networks: Iterable[nn.Module]) -> list[UnitSource]:
    """The images for `remeasure`, as one source; none where no network has statistics to measure."""
    return [data.training_some(MOST_IMAGES)] if any(map(_layers, networks)) else []


@torch.no_grad()
def remeasure(networks: Mapping[str, nn.Module], batches: Iterable[Batch], recipe: Recipe, world: int = 1) -> None:
    """Set the mean and variance of each network's batch normalisation to those of its inputs on these images.

    Like `torch.optim.swa_utils.update_bn`, it makes one pass in which each layer normalises by the batch; but the batch is that
    of all ranks, and the statistics are those of all images together, so neither depends on the number of ranks. Nothing else
    changes; a network without such layers is not run.

    Args:
        networks: from normalised images to anything, in evaluation mode, by name.
        batches: images in a mixed order; as many batches on every rank.
        recipe: for the normalisation and precision.
        world: number of ranks.
    """
    found = {name: _layers(network) for name, network in networks.items()}
    networks = {name: network for name, network in networks.items() if found[name]}
    moments = [_Moments(layer, world) for name in networks for layer in found[name]]
    pixels = Normaliser(recipe.image.mean, recipe.image.std)
    with ExitStack() as stack:
        for each in moments:
            stack.callback(each.layer.register_forward_pre_hook(each).remove)
        for batch in batches if networks else ():
            device = batch.image.device
            network_input = pixels.to(device)(batch.image)
            with autocast(device, recipe.training.precision):
                for network in networks.values():
                    network(network_input)
    for each in moments:
        each.finish()


def _layers(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
