"""Draws what a pretrained network does with some photos: what it paints, and its nearest neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

_SIDE, _GAP, _PAPER = 112, 6, (255, 255, 255)
_HEAD, _INK = 16, (90, 90, 90)
_PARTS = {"input": "input", "before": "pixels alone", "answer": "answer", "target": "target"}
"""Headings of a task's pictures, in order; `before` is the answer before an adversary began, if there was one."""


def painted(pictures: Mapping[str, np.ndarray]) -> dict[str, Image.Image]:
    """For each task whose label is an image, a row a photo: the input, the network's answer, and the target, with headings.

    Where an adversary judged, the answer of pixels alone stands beside.

    Args:
        pictures: as of `trainers.learning.examples.example_pictures`.
    """
    found = {}
    for name in (name.removesuffix(".answer") for name in pictures if name.endswith(".answer")):
        parts = [part for part in _PARTS if f"{name}.{part}" in pictures]
        rows = list(zip(*(pictures[f"{name}.{part}"] for part in parts), strict=True))
        found[name] = headed(grid(rows), [_PARTS[part] for part in parts])
    return found


def neighbours(pictures: Mapping[str, np.ndarray]) -> Image.Image:
    """A row a photo, which comes first and apart; then its neighbours, the nearest first. Arguments as of `painted`."""
    return grid(list(pictures["neighbours"]), apart=True)


def headed(grid: Image.Image, headings: Sequence[str], side: int = _SIDE) -> Image.Image:
    """A grid of pictures of that side with a heading above each column."""
    paper = Image.new("RGB", (grid.width, grid.height + _HEAD), _PAPER)
    paper.paste(grid, (0, _HEAD))
    write = ImageDraw.Draw(paper)
    for column, heading in enumerate(headings):
        write.text((column * (side + _GAP), 1), heading, fill=_INK)
    return paper


def grid(rows: Sequence[Sequence[np.ndarray]], apart: bool = False, side: int = _SIDE) -> Image.Image:
    """Pictures, uint8 (h, w, 1 or 3), in rows, each `side` pixels wide and high; `apart` widens the gap behind a row's first."""
    across, wide = len(rows[0]), 4 * _GAP if apart else _GAP
    paper = Image.new("RGB", (across * (side + _GAP) + wide - 2 * _GAP, len(rows) * (side + _GAP) - _GAP), _PAPER)
    for down, row in enumerate(rows):
        for right, pixels in enumerate(row):
            image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
            how = Image.Resampling.NEAREST if max(image.size) < side else Image.Resampling.LANCZOS
            left = right * (side + _GAP) + (wide - _GAP if right else 0)
            paper.paste(image.resize((side, side), how), (left, down * (side + _GAP)))
    return paper
