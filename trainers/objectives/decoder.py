"""Light decoders: from a backbone's map back to pixels, and corrections of pixels that are given."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HINTS = 16
"""Channels in which the map tells a corrector what is where."""

WIDEST, NARROWEST = 128, 32
"""Channels of the first and of the last layers; each doubling of the resolution halves them in between."""


class Decoder(nn.Module):
    """Doubles a map while it has less than a quarter of the target's resolution, then enlarges bilinearly.

    What the last two doublings would cost in work is most of a small network's step; what they would add is detail that a
    backbone is not to learn. Nearest-neighbour
    enlargement before a convolution leaves no checkerboard, as transposed convolutions do (Odena et al. 2016).

    Args:
        width: channels of the map.
        extent: (h, w) of the map.
        channels: channels of the image.
        size: side of the image, pixels.
        departs: what it paints is added to an answer that is there already, from which it departs as it learns.
    """

    def __init__(self, width: int, extent: tuple[int, int], channels: int, size: int, departs: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = [*_block(width, WIDEST, kernel=1)]
        wide, side = WIDEST, min(extent)
        while side * 4 < size:
            narrow = max(NARROWEST, wide // 2)
            layers += [nn.Upsample(scale_factor=2), *_block(wide, narrow, kernel=3)]
            wide, side = narrow, side * 2
        last = nn.Conv2d(wide, channels, 3, padding=1)
        self.layers = nn.Sequential(*layers, silent(last) if departs else last)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Image, float32 (n, channels, *size), of a map (n, width, h, w); unbounded."""
        return F.interpolate(self.layers(x).float(), size, mode="bilinear", align_corners=False)


class Corrector(nn.Module):
    """Corrects an image by what a backbone makes of it: the map tells what is there, a few convolutions what to do at each pixel.

    It starts as "leave it as it is", for its last layer's weights are zero (Kim et al. 2016 learn the residual, as here).

    Args:
        width, extent: channels and (h, w) of the map.
        size: side of the image, pixels.
        channels: of the correction.
    """

    def __init__(self, width: int, extent: tuple[int, int], size: int, channels: int = 3) -> None:
        super().__init__()
        self.decoder = Decoder(width, extent, HINTS, size)
        last = silent(nn.Conv2d(NARROWEST, channels, 3, padding=1))
        self.layers = nn.Sequential(
            nn.Conv2d(3 + HINTS, NARROWEST, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(NARROWEST, NARROWEST, 3, padding=1),
            nn.ReLU(inplace=True),
            last,
        )

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        """What to add to the image, float32 (n, channels, h, w), given its normalised pixels (n, 3, h, w) and its map."""
        hints = self.decoder(grid, (x.shape[2], x.shape[3]))
        return self.layers(torch.cat([x, hints], 1)).float()


def silent(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer, whose answer is nought until it learns."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _block(wide: int, narrow: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(wide, narrow, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(narrow), nn.ReLU(inplace=True)]
