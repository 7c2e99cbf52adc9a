"""Label kinds: the form of a pseudo-label, on which it depends how a trainer learns from it.

Each task has one of these kinds; `trainers.objectives` has a default objective (head, loss, metric) for each kind. So a new task
with an existing kind needs no objective of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True)
class Classes:
    """One of `count` classes: column `<task>.label`, int64 of shape (n,), 0 <= label < count."""

    count: int


@dataclass(frozen=True)
class Pixels:
    """An image of the batch is the label; the label names its column and does not copy it.

    Args:
        target: the batch column (or task column, after the task's name) that holds it: uint8 (n, h, w, 3).
        channels: `rgb` to predict the colours, `chroma` to predict the two colour-difference channels only, because the input
            already shows the brightness.
        masked: whether the column `<task>.mask`, uint8 (n, h, w) of 0 and 1, marks the pixels that count in the loss.
        spoilt: whether the input is a spoilt version of the target, perhaps smaller: the answer is then a correction of it.
        grid: if set, each of grid x grid cells of the target is standardised by its own mean and deviation. The cells lie centred
            in the image and have size // grid pixels a side.
        code: if set, the answer passes through a vector of so many numbers.
    """

    target: str = "image"
    channels: Literal["rgb", "chroma"] = "rgb"
    masked: bool = False
    spoilt: bool = False
    grid: int | None = None
    code: int | None = None


@dataclass(frozen=True)
class Order:
    """Places of `items` patches: column `<task>.label`, int64 (n, items), a permutation; label[i, k] is the place of patch k."""

    items: int


@dataclass(frozen=True)
class Direction:
    """An angle as a unit vector: column `<task>.label`, float32 (n, 2) of its sine and cosine."""


@dataclass(frozen=True)
class Region:
    """One cell of a grid x grid division of the image, and the pixels that it covers.

    Columns `<task>.label`, int64 (n,), the cell in reading order, and `<task>.mask`, uint8 (n, h, w) of 0 and 1.
    """

    grid: int
    masked: ClassVar[bool] = True


@dataclass(frozen=True)
class Colours:
    """The colours of a small version of an image, as classes; the label names the image's column and does not copy it.

    Args:
        palette: the colours, (red, green, blue) in 0..255, or (Cb, Cr) in levels around 0.
        side: side of the small version, pixels, each the mean of an area; None for a quarter of the image's side.
        shares: how often each colour occurs, with sum 1; if given, rare colours weigh more.
        target: the batch column (or task column, after the task's name) that holds the image: uint8 (n, h, w, 3).
        masked: whether the column `<task>.mask`, uint8 (n, side, side) of 0 and 1, marks the pixels to predict.
    """

    palette: tuple[tuple[float, ...], ...]
    side: int | None = None
    shares: tuple[float, ...] | None = None
    target: str = "image"
    masked: bool = False


@dataclass(frozen=True)
class Views:
    """Several views of one photo; the label of a view is the sample's other views, so it has no column.

    Columns `<task>.input`, uint8 (n, count, s, s, 3), and `<task>.small`, uint8 (n, small, t, t, 3), if there are small ones.

    Args:
        count: number of views of the image's size.
        small: number of further, smaller views.
    """

    count: int
    small: int = 0


@dataclass(frozen=True)
class LabelledViews(Views):
    """Views of photos of which some have a class: column `class`, int64 (n,), -1 where none is known.

    Args:
        classes: number of classes.
    """

    classes: int = 2


def number_of_classes(kind: object) -> int:
    """The number of classes of a label that is one of several."""
    assert isinstance(kind, Classes | LabelledViews)
    return kind.classes if isinstance(kind, LabelledViews) else kind.count


LabelKind = Classes | Pixels | Order | Direction | Region | Colours | Views
