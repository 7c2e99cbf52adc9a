"""Computes changes of brightness, contrast, saturation and hue as one linear map of pixels and mean brightness."""

from __future__ import annotations

import numpy as np

TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
"""From RGB to brightness and two axes of colour, in whose plane hue is an angle (the television standard of the FCC, 1953)."""


def jitter_maps(
    brightness: np.ndarray, contrast: np.ndarray, saturation: np.ndarray, hue: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Combine the four changes into one linear map.

    A pixel p of an image of mean brightness m becomes matrix @ p + of_mean * m. Saturation scales and hue turns the plane of
    colours, and both keep the brightness; contrast scales around the mean brightness, and brightness scales around black. So the
    order of the four does not matter. In torchvision's `ColorJitter`, which draws an order, it does: that rounds and clips after
    each change, and turns hue in HSV.

    Args:
        brightness: (n,): factor of all channels.
        contrast: (n,): factor of the distance from the mean brightness.
        saturation: (n,): factor of the distance from the pixel's brightness.
        hue: (n,): radians, in the direction from red to green.

    Returns:
        `matrix`, float64 (n, 3, 3), and `of_mean`, float64 (n,).
    """
    plane = np.zeros((len(hue), 3, 3))
    plane[:, 0, 0] = 1
    plane[:, 1, 1] = plane[:, 2, 2] = saturation * np.cos(hue)
    plane[:, 1, 2] = saturation * np.sin(hue)
    plane[:, 2, 1] = -plane[:, 1, 2]
    colours = np.linalg.inv(TO_YIQ) @ plane @ TO_YIQ
    return (brightness * contrast)[:, None, None] * colours, brightness * (1 - contrast)
