"""Light decoders: from a backbone's map they paint an image, or a correction of a given image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HINTS = 16
"""Channels of the decoded map that a corrector reads."""

WIDEST, NARROWEST = 128, 32
"""Channels of the first and of the last layers; in between, each doubling of the resolution halves the channels."""

DETAIL = 4
"""Side of the smallest detail that is painted, pixels."""


class Decoder(nn.Module):
    """Doubles a map's resolution up to about that of the image divided by `detail`, then enlarges the result bilinearly.

    The last two doublings would take most of the time of a small network's step, and would only add detail that the backbone
    need not learn. Nearest-neighbour enlargement before a convolution leaves no checkerboard pattern; transposed convolutions
    leave one (Odena et al. 2016).

    Args:
        width: channels of the map.
        extent: (h, w) of the map.
        channels: channels of the image.
        size: side of the image, pixels.
        departs: whether its output is added to a given image; its last layer's weights then start at zero.
        detail: side of the smallest detail that is painted, pixels.
    """

    def __init__(
        self, width: int, extent: tuple[int, int], channels: int, size: int, departs: bool = False, detail: int = DETAIL
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [*_block(width, WIDEST, kernel=1)]
        wide, side = WIDEST, min(extent)
        while side * detail < size:
            narrow = max(NARROWEST, wide // 2)
            layers += [nn.Upsample(scale_factor=2), *_block(wide, narrow, kernel=3)]
            wide, side = narrow, side * 2
        last = nn.Conv2d(wide, channels, 3, padding=1)
        self.layers = nn.Sequential(*layers, zero_initialised(last) if departs else last)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Paint an image, float32 (n, channels, *size), from a map (n, width, h, w); its values are unbounded."""
        return F.interpolate(self.layers(x).float(), size, mode="bilinear", align_corners=False)


class Corrector(nn.Module):
    """Predicts a correction of an image: a few convolutions read its pixels and the backbone's decoded map.

    The correction starts as zero, since the last layer's weights are zero (Kim et al. 2016 learn a residual, too).

    Args:
        width: channels of the map.
        extent: (h, w) of the map.
        size: side of the image, pixels.
        channels: of the correction.
        detail: side of the smallest detail of the decoded map, pixels.
    """

    def __init__(self, width: int, extent: tuple[int, int], size: int, channels: int = 3, detail: int = DETAIL) -> None:
        super().__init__()
        self.decoder = Decoder(width, extent, HINTS, size, detail=detail)
        last = zero_initialised(nn.Conv2d(NARROWEST, channels, 3, padding=1))
        self.layers = nn.Sequential(
            nn.Conv2d(3 + HINTS, NARROWEST, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(NARROWEST, NARROWEST, 3, padding=1),
            nn.ReLU(inplace=True),
            last,
        )

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        """The correction to add, float32 (n, channels, h, w), of an image's normalised pixels (n, 3, h, w) and its map."""
        hints = self.decoder(grid, (x.shape[2], x.shape[3]))
        return self.layers(torch.cat([x, hints], 1)).float()


def zero_initialised(layer: nn.Conv2d) -> nn.Conv2d:
    """Set the weights and the bias of a layer to zero, so that its output is zero until it learns; returns the layer."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _block(wide: int, narrow: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(wide, narrow, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(narrow), nn.ReLU(inplace=True)]
