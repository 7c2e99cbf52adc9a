"""What is measured of painted images: closeness by pixels, sharpness, and how alike they are as a whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor
from torch.nn import functional as F

from trainers.learning.answers import _moments, figures, frechet


@pytest.fixture(scope="module")
def photos(crops) -> Tensor:
    return torch.from_numpy(crops(32, 32)).permute(0, 3, 1, 2) / 255


def blurred(photos: Tensor, side: int = 3) -> Tensor:
    return F.avg_pool2d(F.pad(photos, [side // 2] * 4, mode="replicate"), side, stride=1)


def test_photos_are_themselves(photos) -> None:
    assert figures(photos, photos) == pytest.approx({"psnr": 60, "ssim": 1, "sharpness": 1, "distance": 0}, abs=1e-6)


def test_a_blur_is_less_sharp_and_further_away_the_wider_it_is(photos) -> None:
    narrow, wide = (figures(blurred(photos, side), photos) for side in (3, 7))
    assert 1 > narrow["sharpness"] > wide["sharpness"] > 0
    assert 0 < narrow["distance"] < wide["distance"] < 1
    assert narrow["psnr"] > wide["psnr"]


def test_grain_makes_a_blurred_photo_sharper_and_worse_by_psnr(photos) -> None:
    grain = 0.05 * torch.randn(photos.shape, generator=torch.Generator().manual_seed(0))
    grainy, smooth = (figures(images, photos) for images in ((blurred(photos) + grain).clamp(0, 1), blurred(photos)))
    assert grainy["sharpness"] > smooth["sharpness"]
    assert grainy["psnr"] < smooth["psnr"]


def test_the_distance_is_between_distributions_not_between_images(photos) -> None:
    assert frechet(photos.flip(0), photos) == pytest.approx(0, abs=1e-9)
    assert frechet(torch.full_like(photos, 0.5), photos) > 0.99


def test_the_distance_is_the_frechet_distance_of_whitened_features(photos) -> None:
    """By the usual formula, with a square root of a product of matrices."""
    (mean, covariance), (wanted, spread) = (tuple(x.numpy() for x in _moments(images)) for images in (blurred(photos), photos))
    values, vectors = np.linalg.eigh(spread)
    assert (values > 1e-5 * values[-1]).all()
    white = vectors / np.sqrt(values)
    other = white.T @ covariance @ white
    root = np.real(sqrtm(other))
    expected = ((mean - wanted) @ white) @ ((mean - wanted) @ white) + np.trace(np.eye(len(values)) + other - 2 * root)
    assert frechet(blurred(photos), photos) == pytest.approx(expected / len(values), rel=1e-5)


def test_photos_of_one_colour_have_no_directions(photos) -> None:
    plain = torch.full_like(photos, 0.5)
    assert frechet(photos, plain) == 0
