"""Measures painted images beside the photos that were asked for: how close, how sharp, and how alike as a whole."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.objectives.pixels import psnr, ssim

CHANNELS = (24, 32, 48)
"""Channels of the layers of the random network whose features are compared; all but the first halve the resolution."""

_CHUNK = 16  # images
_LEAST = 1e-6  # of the greatest variance: directions that vary less are left out


@torch.no_grad()
def figures(answers: Tensor, targets: Tensor) -> dict[str, float]:
    """Compare painted images with photos, each float (n, 3, h, w) in 0..1.

    Returns:
        - `psnr`, decibels, and `ssim`, means over the images.
        - `sharpness`: the mean absolute Laplacian of the brightness, as a multiple of the photos'; 1 is as sharp as they are.
        - `distance`: how far the distributions of local features are apart, see `frechet`; 0 is equal.
    """
    everywhere = torch.ones_like(targets[:, :1])
    return {
        "psnr": float(psnr(answers, targets, everywhere).mean()),
        "ssim": float(ssim(answers, targets).mean()),
        "sharpness": float(_edges(answers) / _edges(targets).clamp(min=1e-12)),
        "distance": frechet(answers, targets),
    }


def frechet(answers: Tensor, targets: Tensor) -> float:
    """Fréchet distance between normal distributions of local features of painted images and of photos (Heusel et al. 2017).

    The features, one vector for each square of 4 x 4 pixels, are those of a small random network, the same in every run. They are
    whitened by the photos' mean and covariance, so that fine detail counts as much as brightness, and the distance is divided by
    their number: it is 1 if an answer varies in no direction. Arguments as of `figures`.
    """
    mean, covariance = _moments(answers)
    wanted, spread = _moments(targets)
    values, vectors = torch.linalg.eigh(spread)
    kept = values > _LEAST * values[-1].clamp(min=1e-12)
    if not kept.any():
        return 0.0
    white = vectors[:, kept] / values[kept].sqrt()
    apart = (mean - wanted) @ white
    deviations = torch.linalg.eigvalsh(white.T @ covariance @ white).clamp(min=0).sqrt()
    return float((apart.square().sum() + (1 - deviations).square().sum()) / kept.sum())


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance, float64, of the features of all places of images."""
    layers, count = _random_layers(), 0
    total = torch.zeros(CHANNELS[-1], dtype=torch.float64)
    products = torch.zeros(CHANNELS[-1], CHANNELS[-1], dtype=torch.float64)
    for part in images.split(_CHUNK):
        x = part.cpu().float() - 0.5
        for i, layer in enumerate(layers):
            x = F.leaky_relu(F.conv2d(x, layer, stride=2 if i else 1, padding=1), 0.2)
        places = x.permute(0, 2, 3, 1).flatten(0, 2).double()
        count, total, products = count + len(places), total + places.sum(0), products + places.T @ places
    mean = total / count
    return mean, products / count - torch.outer(mean, mean)


def _random_layers() -> list[Tensor]:
    generator, wide, found = torch.Generator().manual_seed(0), 3, []
    for narrow in CHANNELS:
        found.append(torch.randn(narrow, wide, 3, 3, generator=generator) * (2 / (9 * wide)) ** 0.5)
        wide = narrow
    return found


def _edges(images: Tensor) -> Tensor:
    kernel = images.new_tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return F.conv2d(images.mean(1, keepdim=True), kernel).abs().mean()
