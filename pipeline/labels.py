"""Label kinds: what shape a pseudo-label has, which decides how a trainer learns from it.

A task declares one of these; `trainers.objectives` has a default objective (head, loss, metric) for each. A new task with
an existing kind therefore needs no trainer.
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
    """An image of the batch is the label; it is named, not copied.

    Args:
        target: the batch column (or task column, after the task's name) that holds it: uint8 (n, h, w, 3).
        channels: `rgb` asks for the colours themselves, `chroma` for the two colour-difference channels only, where the input
            already shows the brightness.
        masked: the column `<task>.mask`, uint8 (n, h, w) of 0 and 1, says where the loss counts.
        spoilt: the input is the target, spoilt, perhaps smaller: the answer is a correction of it.
        grid: the target is asked for in units of its own cells: each of grid x grid cells, which lie centred in the image and
            have size // grid pixels a side, is standardised by its own mean and deviation.
        code: the answer passes through a vector of so many numbers.
    """

    target: str = "image"
    channels: Literal["rgb", "chroma"] = "rgb"
    masked: bool = False
    spoilt: bool = False
    grid: int | None = None
    code: int | None = None


@dataclass(frozen=True)
class Order:
    """Places of `items` patches: column `<task>.label`, int64 (n, items), a permutation; label[i, k] is where patch k belongs."""

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
    """The colours of a small version of an image as classes; the image is named, not copied.

    Args:
        palette: the colours, (red, green, blue) of 255, or (Cb, Cr) in levels around 0.
        side: pixels along each side of the small version, whose pixels are means; None for a quarter of the image's.
        shares: how often each colour occurs, which sum to 1; given, rare colours weigh more.
        target: the batch column (or task column, after the task's name) that holds the image: uint8 (n, h, w, 3).
        masked: the column `<task>.mask`, uint8 (n, side, side) of 0 and 1, says which pixels are asked for.
    """

    palette: tuple[tuple[float, ...], ...]
    side: int | None = None
    shares: tuple[float, ...] | None = None
    target: str = "image"
    masked: bool = False


@dataclass(frozen=True)
class Views:
    """Several views of one photo; a sample's own other views are its label, which has no column.

    Columns `<task>.input`, uint8 (n, count, s, s, 3), and `<task>.small`, uint8 (n, small, t, t, 3), if there are small ones.

    Args:
        count: views of the image's size.
        small: further views, of a smaller size.
    """

    count: int
    small: int = 0


LabelKind = Classes | Pixels | Order | Direction | Region | Colours | Views
