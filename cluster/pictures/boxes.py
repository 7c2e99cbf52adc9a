"""Draws boxes over photos: a colour a class, what people drew beside what a network finds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from PIL import Image, ImageDraw

from cluster.pictures.examples import grid, headed
from cluster.pictures.masks import class_colour

LEAST_SCORE = 0.3
"""Found boxes of lower scores are not drawn."""

_COLUMNS = {"truth": "boxes", "pretrained": "pretrained", "random": "random"}
_SIDE = 208
_LINE = 13  # pixels of a line of text
_NAMED = 6
"""Boxes of a photo beside which words are written; more would hide each other's."""


def boxed(pictures: Mapping[str, np.ndarray]) -> Image.Image:
    """A row a test photo: its boxes, and the surest that were found from each start, as many as it has, with headings.

    Args:
        pictures: `image`, uint8 (k, h, w, 3); `truth` and each start's answer, float32 (k, m, 6): corners, class (-1 where there
            is no box) and score; `classes`, their names.
    """
    there = [name for name in _COLUMNS if name in pictures]
    names = pictures["classes"].tolist()
    rows = [
        [
            drawn(photo, boxes, names if name != "truth" or len(names) > 1 else [], name != "truth")
            for name, boxes in found.items()
        ]
        for photo, found in zip(pictures["image"], _shown(pictures))
    ]
    return headed(grid(rows, side=_SIDE), [_COLUMNS[name] for name in there], _SIDE)


def _shown(pictures: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """Of each photo the boxes that are drawn, by column; arguments as of `boxed`."""
    for i, truth in enumerate(pictures["truth"]):
        most = max(1, int((truth[:, 4] >= 0).sum()))
        yield {name: surest(pictures[name][i], most) for name in _COLUMNS if name in pictures}


def surest(boxes: np.ndarray, most: int) -> np.ndarray:
    """The boxes of the highest scores, at most so many, the lowest first; those below `LEAST_SCORE` are left out."""
    there = boxes[(boxes[:, 4] >= 0) & (boxes[:, 5] >= LEAST_SCORE)]
    return there[np.argsort(there[:, 5], kind="stable")][-most:]


def drawn(photo: np.ndarray, boxes: np.ndarray, names: list[str], scores: bool) -> np.ndarray:
    """A photo, uint8 (h, w, 3), enlarged, with its boxes, float (m, 6) as of `boxed`, the last on top; of few with words.

    Args:
        photo: the photo.
        boxes: its boxes.
        names: of the classes; none to write none.
        scores: whether to write scores.
    """
    paper = Image.fromarray(photo).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    pen, scale = ImageDraw.Draw(paper), np.tile([_SIDE / photo.shape[1], _SIDE / photo.shape[0]], 2)
    for *corners, label, score in boxes.tolist():
        colour = class_colour(int(label) + 1)
        left, top, right, bottom = (float(value) for value in np.array(corners) * scale)
        pen.rectangle((left, top, right, bottom), outline=colour, width=2)
        words = " ".join([*names[int(label) : int(label) + 1], *([f"{score:.2f}"] if scores else [])])
        if words and len(boxes) <= _NAMED:
            above = top - _LINE if top >= _LINE else top
            pen.rectangle((left, above, left + pen.textlength(words) + 3, above + _LINE), fill=colour)
            pen.text((left + 2, above), words, fill=(0, 0, 0))
    return np.asarray(paper)


def legend(pictures: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
    """The classes that have a box in the pictures, each with its colour in CSS; arguments as of `boxed`."""
    labels = {int(label) for found in _shown(pictures) for boxes in found.values() for label in boxes[:, 4]}
    return [(str(pictures["classes"][label]), "rgb({}, {}, {})".format(*class_colour(label + 1))) for label in sorted(labels)]
