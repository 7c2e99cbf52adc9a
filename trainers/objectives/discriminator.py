"""The patch discriminator: it scores each patch of an image, beside the input for which the image is an answer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.networks.precision import in_float32

SLOPE = 0.2
"""Slope of the leaky rectifier for negative numbers (Radford et al. 2016)."""

_LEAST_SIDE = 4  # of the map of scores
_FIRST_ROUNDS = 15


class SpectralConv(nn.Conv2d):
    """A convolution whose weights are divided by their largest singular value, which one power iteration a step follows.

    See Miyato et al. 2018, algorithm 1. The iteration advances by `advance` only, so that the weights of a forward pass depend
    neither on the number of passes before it nor on the number of ranks.

    Attributes:
        singular: estimate of the first left singular vector, float32 (out_channels,); part of the checkpoint.
    """

    singular: Tensor

    def __init__(self, wide: int, narrow: int, kernel: int, stride: int = 1) -> None:
        super().__init__(wide, narrow, kernel, stride=stride, padding=1)
        self.register_buffer("singular", F.normalize(torch.randn(narrow), dim=0))
        for _ in range(_FIRST_ROUNDS):
            self.advance()

    @torch.no_grad()
    def advance(self) -> None:
        """One round of the power iteration, on the weights as they are now."""
        weight = self.weight.flatten(1)
        self.singular.copy_(F.normalize(weight @ F.normalize(weight.T @ self.singular, dim=0), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """As in `torch.nn.Conv2d`; the divisor is computed in float32, and has a gradient by the weights."""
        with in_float32(x.device):
            matrix = self.weight.flatten(1)
            right = F.normalize(matrix.detach().T @ self.singular, dim=0)
            weight = self.weight / torch.dot(self.singular, matrix @ right)
        return self._conv_forward(x, weight, self.bias)


class PatchDiscriminator(nn.Module):
    """Scores overlapping patches of an image and its input (Isola et al. 2017, section 3.2.2), without batch normalisation.

    Batch normalisation would make a sample's score depend on the others of its batch and rank.

    Args:
        channels: of the image and what is given beside it, together.
        size: side of the image, pixels.
        width: channels of the first layer; each further one doubles them, up to eight times as many.
        layers: number of layers that halve the resolution; fewer where scores would be less than 4 x 4.
        spectral: whether weights are divided by their largest singular value.
    """

    def __init__(self, channels: int, size: int, width: int, layers: int, spectral: bool) -> None:
        super().__init__()
        wide, stack = channels, nn.ModuleList()
        for layer in range(layers):
            if layer and size // 2 ** (layer + 1) < _LEAST_SIDE:
                break
            narrow = width * min(8, 2**layer)
            stack.append(_conv(wide, narrow, 4, 2, spectral))
            wide = narrow
        stack.append(_conv(wide, wide, 3, 1, spectral))
        self.layers = stack
        self.last = _conv(wide, 1, 3, 1, spectral)

    def forward(self, image: Tensor, given: Tensor) -> Tensor:
        """Score images.

        Args:
            image: float (n, 3, h, w) in 0..1.
            given: what else it sees, float (n, c, h, w) in 0..1; c may be 0.

        Returns:
            Scores, float32 (n, patches).
        """
        x = torch.cat([image, given], 1) * 2 - 1
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
        return self.last(x).float().flatten(1)

    def advance(self) -> None:
        """One round of all power iterations; to be called once a step, after the weights have changed."""
        for layer in self.modules():
            if isinstance(layer, SpectralConv):
                layer.advance()


def _conv(wide: int, narrow: int, kernel: int, stride: int, spectral: bool) -> nn.Conv2d:
    if spectral:
        return SpectralConv(wide, narrow, kernel, stride)
    return nn.Conv2d(wide, narrow, kernel, stride=stride, padding=1)
