"""Measures on some images of a corpus what a recipe for it depends on: sizes, colours, frames, and channel statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.draws import permutation
from pipeline.errors import RunError
from pipeline.images.check import check_frames
from pipeline.recipe.schema import Recipe
from pipeline.rendering.renderer import Renderer
from pipeline.shards.corpus import Corpus, Sample
from pipeline.shards.naming import is_image

MOST_MEASURED = 512
"""How many images are enough: their statistics differ from the corpus's by a hundredth or so."""

_AT_ONCE = 64
_THUMBNAIL = 8  # pixels: noise of single pixels is no colour
_COLOURED = 6.0
"""Levels between the channels of an image, on average, from which it has colours."""

_MOST_GREY = 0.5


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Args:
        samples: samples of the whole corpus.
        looked_at: those that were measured.
        side: the middle one of their shorter sides, pixels.
        frames: the fewest images that one of them has.
        has_labels: whether all of them have a label.
        size: side of the crops on which the rest was measured, pixels.
        is_grey: whether fewer than half of the images have colours besides one tint of all, such as that of old paper.
        mean: channel means of the centred crops, in 0..1.
        std: channel standard deviations over all their pixels, in the same units.
    """

    samples: int
    looked_at: int
    side: int
    frames: int
    has_labels: bool
    size: int
    is_grey: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]


def measure(corpus: Corpus, size_for: Callable[[int], int], seed: int = 0) -> Measured:
    """Look at up to `MOST_MEASURED` images, drawn by the seed from all over the corpus.

    Args:
        corpus: the corpus, opened without `frames`.
        size_for: the side of the crops for images whose shorter side is so many pixels.
        seed: of the choice of images.

    Raises:
        RunError: none of the images can be decoded.
    """
    samples, frames = _some(corpus, seed)
    sides, usable = [], []
    for sample in samples:
        headers = check_frames(sample.files(), most_pixels()) if sample.problem is None else sample.problem
        if not isinstance(headers, str):
            sides.append(min(headers[0].height, headers[0].width))
            usable.append(sample)
    size = size_for(int(np.median(sides))) if sides else 0
    counts, sums, squares = 0, np.zeros(3), np.zeros(3)
    small: list[np.ndarray] = []
    renderer = Renderer(_plain(size), center=True) if sides else None
    for start in range(0, len(usable), _AT_ONCE):
        assert renderer is not None
        columns = renderer(usable[start : start + _AT_ONCE], epoch=0).columns
        decoded = columns["image"][np.flatnonzero(columns["weight"])]
        small += map(_thumbnail, decoded)
        pixels = decoded.astype(np.float64) / 255
        counts += pixels[..., 0].size
        sums += pixels.sum((0, 1, 2))
        squares += np.square(pixels).sum((0, 1, 2))
    if not counts:
        raise RunError(f"none of {len(samples)} images of the corpus could be decoded; `pseudolabel inspect --deep` says why")
    mean = sums / counts
    return Measured(
        samples=corpus.samples,
        looked_at=len(usable),
        side=int(np.median(sides)),
        frames=frames,
        has_labels=all(sample.label >= 0 for sample in usable),
        size=size,
        is_grey=bool((_colourfulness(np.stack(small)) > _COLOURED).mean() < _MOST_GREY),
        mean=tuple(mean.round(3).tolist()),
        std=tuple(np.sqrt(np.maximum(squares / counts - mean**2, 0)).round(3).clip(0.001).tolist()),
    )


def _thumbnail(image: np.ndarray) -> np.ndarray:
    import cv2

    return np.asarray(cv2.resize(image, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA))


def _colourfulness(images: np.ndarray) -> np.ndarray:
    """Levels between the largest and the smallest channel of each image, the mean over its pixels, without the tint of all.

    Args:
        images: uint8 (n, h, w, 3).

    Returns:
        float64 (n,).
    """
    pixels = images.astype(np.float64)
    shares = pixels.mean((1, 2)) / np.maximum(pixels.mean((1, 2, 3)), 1)[:, None]
    tint = np.maximum(np.median(shares, axis=0), 0.1)
    return np.asarray(np.ptp(pixels / tint, axis=-1).mean((1, 2)))


def most_pixels() -> int:
    """The recipe's default of `image.max_pixels`."""
    return _plain(8).image.max_pixels


def _some(corpus: Corpus, seed: int) -> tuple[list[Sample], int]:
    """The chosen samples, and the fewest images that one of them has."""
    chosen = np.sort(permutation(corpus.samples, "measuring", seed)[:MOST_MEASURED])
    found: list[Sample] = []
    frames = []
    for i, rows in enumerate(corpus.rows_of(chosen)):
        if len(rows):
            for sample, members in corpus.read_members(i, rows):
                found.append(sample)
                frames.append(sum(is_image(extension) for extension in members))
    return found, min(frames, default=0)


def _plain(size: int) -> Recipe:
    """A recipe of crops without tasks."""
    return Recipe.model_validate(
        {"name": "measure", "seed": 0, "corpus": {"shards": "-"}, "image": {"size": size}, "engine": "cpu"}
    )
