"""Changes of brightness, contrast, saturation and hue as one map of a pixel and of the image's mean."""

from __future__ import annotations

import numpy as np

TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
"""The television standard's brightness and two axes of colour (FCC, 1953), in whose plane hue is an angle."""

_TO_GREY = np.tile(TO_YIQ[0], (3, 1))


def jitter_maps(
    brightness: np.ndarray, contrast: np.ndarray, saturation: np.ndarray, hue: np.ndarray, order: np.ndarray, grey: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What changes in some order, and then the loss of all colour, come to together.

    A pixel p of an image whose mean is m becomes matrix @ p + of_mean @ m. torchvision's `ColorJitter` rounds and clips after
    each change and turns hue in HSV; here both are done once, at the end, and hue is turned in YIQ, where that is linear.

    Args:
        brightness: (n,): factor of all channels.
        contrast: (n,): factor of the distance from the mean brightness.
        saturation: (n,): factor of the distance from the pixel's brightness.
        hue: (n,): radians.
        order: (n, 4): a permutation; the change that comes k-th, counted as in this list.
        grey: bool (n,): whether in the end all channels become the brightness.

    Returns:
        `matrix` and `of_mean`, float64 (n, 3, 3).
    """
    n, one = len(brightness), np.eye(3)
    plane = np.zeros((n, 3, 3))
    plane[:, 0, 0] = 1
    plane[:, 1, 1] = plane[:, 2, 2] = np.cos(hue)
    plane[:, 2, 1] = np.sin(hue)
    plane[:, 1, 2] = -plane[:, 2, 1]
    b, c, s = (factor[:, None, None] for factor in (brightness, contrast, saturation))
    changes = np.stack([b * one, c * one, s * one + (1 - s) * _TO_GREY, np.linalg.inv(TO_YIQ) @ plane @ TO_YIQ], axis=1)
    around = np.zeros((n, 4, 3, 3))
    around[:, 1] = (1 - c) * _TO_GREY
    matrix, of_mean = np.tile(one, (n, 1, 1)), np.zeros((n, 3, 3))
    for place in order.T:
        change, mean = (maps[np.arange(n), place] for maps in (changes, around))
        matrix, of_mean = change @ matrix, change @ of_mean + mean @ (matrix + of_mean)
    last = np.where(grey[:, None, None], _TO_GREY, one)
    return last @ matrix, last @ of_mean
