"""Draws masks over photos: a colour a class, what people drew beside what a network names."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping

import numpy as np
from PIL import Image

from cluster.pictures.examples import grid, headed

_COLUMNS = {"image": "photo", "truth": "mask", "pretrained": "pretrained", "random": "random"}
_SHOWN = 0.65  # of the colour; the rest is the photo in grey
_GOLDEN = 0.618034  # turns of the hue from class to class: near classes are far apart


def masked(pictures: Mapping[str, np.ndarray]) -> Image.Image:
    """A row a test photo: the photo, its mask, and the predicted masks from each start, with headings.

    Args:
        pictures: `image`, uint8 (k, h, w, 3); `truth` and each start's answer, uint8 (k, h, w); `classes`, their names.
    """
    photos = pictures["image"]
    there = [name for name in _COLUMNS if name in pictures]
    columns = [photos if name == "image" else painted_over(photos, pictures[name], len(pictures["classes"])) for name in there]
    return headed(grid(list(zip(*columns, strict=True))), [_COLUMNS[name] for name in there])


def painted_over(photos: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Photos, uint8 (k, h, w, 3), in grey, under the colours of their labels, uint8 (k, h, w); other numbers stay grey."""
    grey = np.repeat(photos.mean(axis=3, keepdims=True), 3, axis=3)
    colours = np.array([class_colour(label) for label in range(classes)], np.float64).reshape(-1, 3)
    known = labels < classes
    out = grey.copy()
    out[known] = (1 - _SHOWN) * grey[known] + _SHOWN * colours[labels[known]]
    return out.round().astype(np.uint8)


def class_colour(label: int) -> tuple[int, int, int]:
    """The colour of a label; the first, which often is the background, is dark."""
    if label == 0:
        return 30, 34, 42
    red, green, blue = colorsys.hsv_to_rgb(label * _GOLDEN % 1, 0.8, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def legend(pictures: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
    """The classes that the masks show, each with its colour in CSS; arguments as of `masked`."""
    shown = np.unique(np.concatenate([pictures[name].ravel() for name in _COLUMNS if name in pictures and name != "image"]))
    names = pictures["classes"].tolist()
    return [(names[label], "rgb({}, {}, {})".format(*class_colour(label))) for label in shown.tolist() if label < len(names)]
