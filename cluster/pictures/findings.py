"""Draws what an evaluation found: which classes are confused, the most wrong photos, and a map of the features."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from cluster.pictures.masks import class_colour

_SIDE, _GAP, _LINE, _ACROSS = 150, 10, 14, 6
_PAPER, _INK, _QUIET = (255, 255, 255), (28, 35, 48), (95, 104, 120)
_LETTERS = 24  # of a line below a photo
_NUMBERED, _NAMED = 12, 40
"""The most classes whose numbers, and whose names, a matrix shows."""

_LEGEND = 20
_COLOURS = 96  # of a picture's palette, for small files
_TEN = ("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#79706e")


def confusion_matrix(pictures: Mapping[str, np.ndarray]) -> bytes:
    """A PNG: a row a true class, a column a class that was named, the colour a share of the row.

    Args:
        pictures: as `trainers.downstream.findings.leave_findings` describes them.
    """
    counts, names = pictures["confusion"], _short(pictures["classes"])
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    side = 1.6 + min(5.0, max(2.0, 0.36 * len(names)))
    figure, axes = _figure(side + 0.4, side)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= _NUMBERED:
        for (down, across), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[down, across] > 0.5 else "#1c2330"
                axes.text(across, down, f"{count:,}", ha="center", va="center", fontsize=7, color=colour)
    if len(names) <= _NAMED:
        size = 8 if len(names) <= 2 * _NUMBERED else 6
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor", fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_xlabel("named", fontsize=9)
    axes.set_ylabel("true", fontsize=9)
    axes.tick_params(length=0)
    return _small(figure)


def confused_words(pictures: Mapping[str, np.ndarray], most: int = 5) -> list[str]:
    """The most frequent confusions, such as `cat named dog: 31 of 200`."""
    counts, names = pictures["confusion"], pictures["classes"].tolist()
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = (divmod(int(place), len(names)) for place in order if wrong.flat[place])
    return [f"{names[true]} named {names[named]}: {wrong[true, named]:,} of {counts[true].sum():,}" for true, named in pairs]


def wrong_photos(pictures: Mapping[str, np.ndarray]) -> Image.Image:
    """Photos that were named wrongly, the surest first, each with the class that was named, how surely, and its own class."""
    photos, names = pictures["wrong"], pictures["classes"].tolist()
    rows = -(-len(photos) // _ACROSS)
    tall = _SIDE + 2 * _LINE + _GAP
    paper = Image.new("RGB", (min(len(photos), _ACROSS) * (_SIDE + _GAP) - _GAP, rows * tall), _PAPER)
    write = ImageDraw.Draw(paper)
    said = zip(photos, pictures["wrong_true"].tolist(), pictures["wrong_named"].tolist(), pictures["wrong_sure"].tolist())
    for number, (photo, true, named, sure) in enumerate(said):
        left, top = number % _ACROSS * (_SIDE + _GAP), number // _ACROSS * tall
        how = Image.Resampling.NEAREST if photo.shape[0] < _SIDE // 2 else Image.Resampling.LANCZOS
        paper.paste(Image.fromarray(photo).resize((_SIDE, _SIDE), how), (left, top))
        write.text((left, top + _SIDE + 1), _cut(f"{names[named]} {100 * sure:.0f} %"), fill=_INK)
        write.text((left, top + _SIDE + 1 + _LINE), _cut(f"is: {names[true]}"), fill=_QUIET)
    return paper


def feature_map(pictures: Mapping[str, np.ndarray]) -> bytes:
    """A PNG: a point a test image, features that are alike near each other, in the colour of its class."""
    points, labels, names = pictures["points"], pictures["points_label"], _short(pictures["classes"])
    figure, axes = _figure(6.4, 4.4)
    present = np.unique(labels)
    for label in present:
        of_class = points[labels == label]
        axes.scatter(*of_class.T, s=7, color=_colour(int(label), len(names)), label=names[label], linewidths=0, alpha=0.8)
        if len(present) <= _LEGEND:  # colours of many classes are hard to tell apart
            paper = {"fc": "white", "lw": 0, "alpha": 0.6, "pad": 1}
            axes.text(*np.median(of_class, axis=0), names[label], ha="center", va="center", fontsize=7, bbox=paper)
    axes.set_xticks([])
    axes.set_yticks([])
    if len(present) <= _LEGEND:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8, markerscale=2.2, handletextpad=0.2)
    return _small(figure)


def _colour(label: int, classes: int) -> Any:
    return _TEN[label] if classes <= len(_TEN) else tuple(part / 255 for part in class_colour(label + 1))


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[:].set_color("#c9ced8")
    return figure, axes


def _small(figure: Any) -> bytes:
    """A figure as a PNG of few colours."""
    drawn, file = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    Image.open(drawn).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def _short(names: np.ndarray) -> list[str]:
    return [_cut(name) for name in names.tolist()]


def _cut(text: str) -> str:
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}…"
