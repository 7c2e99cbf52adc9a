"""Colours learnt from a corpus: a palette for `next_pixel`, and how often each colour occurs for `quantised_colorization`."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np

from pipeline.draws import Draws
from pipeline.errors import RunError
from pipeline.recipe.schema import Recipe
from pipeline.streaming.pairs import pairs
from pipeline.tasks.quantised_colorization import chroma_squares

_ROUNDS = 50
_PIXELS = 64  # of each crop, drawn


def learn_colours(recipe: Recipe, colours: int = 64, samples: int = 2048, step: int = 24) -> dict[str, dict[str, Any]]:
    """Learn parameters for the tasks on colours; the same corpus, seed and numbers give the same result.

    Args:
        recipe: corpus, image and seed are read.
        colours: size of the palette.
        samples: number of crops to sample.
        step: of `quantised_colorization`.

    Returns:
        By task: `next_pixel` with `palette`, the means that k-means ends with, rounded, sorted by brightness;
        `quantised_colorization` with `step` and `shares`.

    Raises:
        RunError: the corpus has fewer colours than that.
    """
    looked_at = recipe.model_copy(update={"tasks": {}, "engine": "cpu"})
    pixels = np.concatenate(list(islice(_pixels(looked_at), max(1, samples // recipe.training.batch))))
    return {
        "next_pixel": {"palette": _palette(pixels, colours)},
        "quantised_colorization": {"step": step, "shares": _shares(pixels, step)},
    }


def _pixels(recipe: Recipe) -> Any:
    """Some pixels of each crop, float32 (n, 3), batch by batch."""
    for batch in pairs(recipe):
        image = batch["image"].reshape(len(batch["id"]), -1, 3)
        places = Draws(recipe.seed, 0, batch["id"]).stream("colours").integers("place", image.shape[1], shape=(_PIXELS,))
        yield np.take_along_axis(image, places[:, :, None], axis=1).reshape(-1, 3).astype(np.float32)


def _palette(pixels: np.ndarray, colours: int) -> list[list[int]]:
    """Lloyd's k-means by OpenCV, from colours spread evenly over those that occur."""
    import cv2

    different = np.unique(pixels, axis=0)
    if len(different) < colours:
        raise RunError(f"the corpus shows {len(different)} different colours, fewer than {colours}: ask for fewer")
    start = different[np.linspace(0, len(different) - 1, colours).astype(int)]
    nearest = np.concatenate([_distances(part, start).argmin(1) for part in np.array_split(pixels, len(pixels) // 4096 + 1)])
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, _ROUNDS, 0.1)
    _, _, centres = cv2.kmeans(pixels, colours, nearest.astype(np.int32)[:, None], stop, 1, cv2.KMEANS_USE_INITIAL_LABELS)
    rounded = np.unique(np.rint(centres).astype(int), axis=0)
    return rounded[np.argsort(rounded @ [299, 587, 114], kind="stable")].tolist()


def _shares(pixels: np.ndarray, step: int) -> list[float]:
    red, green, blue = pixels.T
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    plane = np.stack([(blue - luma) / 1.772, (red - luma) / 1.402], axis=1)
    squares = np.array(chroma_squares(step))
    found = np.concatenate([_distances(part, squares).argmin(1) for part in np.array_split(plane, len(plane) // 4096 + 1)])
    counts = np.bincount(found, minlength=len(squares))
    return [round(share, 6) for share in (counts / counts.sum()).tolist()]


def _distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distances, (points, centres)."""
    return ((points[:, None] - centres[None]) ** 2).sum(axis=2)
