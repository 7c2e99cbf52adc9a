"""Jigsaw: predict by which permutation the patches of a crop were shuffled."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from pipeline.draws import Draws, Stream
from pipeline.engines.vocabulary import Ops
from pipeline.labels import Classes
from pipeline.tasks.base import Drawn, Task

_SMALLEST_TILE = 6
_CANDIDATES = 50_000


class Jigsaw(Task):
    """The crop is cut into a grid of patches, which are shuffled by one of P permutations; the label is which one.

    Three things keep the network from answering without looking at what the patches show: each patch is taken at a drawn place
    inside its cell, so that edges do not line up (gap and jitter); each patch is standardised by its own mean and deviation, so
    that brightness is no hint; and a share of the images loses its colour, so that chromatic aberration is no hint.
    """

    name: ClassVar[str] = "jigsaw"
    source: ClassVar[str] = (
        "Noroozi and Favaro, Unsupervised learning of visual representations by solving jigsaw puzzles, ECCV 2016"
    )
    input_norm: ClassVar[Literal["image", "patch"]] = "patch"

    grid: int = Field(3, ge=2, le=6, description="Patches along each side.")
    permutations: int = Field(100, ge=2, le=1000, description="How many permutations there are to choose from.")
    gap: float = Field(0.06, ge=0, lt=0.5, description="Least gap between neighbouring patches, as a share of a cell's side.")
    jitter: float = Field(0.1, ge=0, lt=0.5, description="Range in which a patch's place is drawn, as a share of a cell's side.")
    gray: float = Field(0.3, ge=0, le=1, description="Share of the images that lose their colour.")

    def _sizes(self, size: int) -> tuple[int, int, int, int]:
        """Cell, patch, half the gap, and room for jitter, in pixels."""
        cell = size // self.grid
        gap, room = round(self.gap * cell), round(self.jitter * cell)
        return cell, cell - gap - room, gap // 2, room

    def check(self, size: int) -> None:
        cell, tile, _, _ = self._sizes(size)
        if tile < _SMALLEST_TILE:
            raise ValueError(
                f"a {self.grid}x{self.grid} jigsaw on {size} pixels has cells of {cell} and patches of {tile} pixels; "
                f"patches need at least {_SMALLEST_TILE}: take a smaller grid or larger images"
            )
        if self.permutations > math.factorial(self.grid**2):
            raise ValueError(f"{self.grid**2} patches have {math.factorial(self.grid**2)} orders, fewer than {self.permutations}")

    def label_kind(self) -> Classes:
        return Classes(self.permutations)

    def input_shape(self, size: int) -> tuple[int, ...]:
        tile = self._sizes(size)[1]
        return (self.grid**2, tile, tile, 3)

    def draw(self, rng: Stream, size: int) -> Drawn:
        label = rng.integers("permutation", self.permutations)
        return {**self.places(rng, distant_permutations(self.grid**2, self.permutations)[label], size), "label": label}

    def places(self, rng: Stream, cells: np.ndarray, size: int) -> Drawn:
        """Draw where patches are cut inside their `cells` (n, grid * grid), and which images lose their colour."""
        cell, _, margin, room = self._sizes(size)
        corner = np.stack(np.divmod(cells, self.grid), axis=-1) * cell
        offset = margin + rng.integers("offset", room + 1, shape=corner.shape[1:])
        return {"corners": corner + offset, "gray": rng.uniform("gray") < self.gray}

    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        _, tile, _, _ = self._sizes(ops.size)
        return ops.patches(ops.drop_colour(image, drawn["gray"]), drawn["corners"], tile, self.grid**2)

    def caption(self, drawn: Drawn) -> str:
        order = distant_permutations(self.grid**2, self.permutations)[drawn["label"]]
        return f"permutation {drawn['label'] + 1} of {self.permutations}:\n{patches_shown(order, self.grid)}"


def patches_shown(order: np.ndarray, grid: int) -> str:
    """Which patches of the crop, counted from 1 row by row, are shown, in words: row by row, too."""
    return f"patches {', '.join(' '.join(map(str, row)) for row in order.reshape(grid, grid) + 1)}"


@cache
def distant_permutations(items: int, count: int) -> np.ndarray:
    """`count` permutations of `items` that differ from each other in as many places as possible.

    Chosen one after another from a fixed pool of candidates: each time the one whose least Hamming distance to those already
    chosen is greatest, ties by the greater sum of distances (the greedy scheme of Noroozi and Favaro, made deterministic).

    Returns:
        int64 (count, items).
    """
    if math.factorial(items) <= _CANDIDATES:
        pool = np.array(list(itertools.permutations(range(items))), np.int8)
    else:
        words = Draws(0, 0, np.arange(_CANDIDATES)).stream("jigsaw").words("order", items)
        pool = np.argsort(words, axis=1, kind="stable").astype(np.int8)
    columns = np.ascontiguousarray(pool.T)
    chosen = [0]
    least, summed = np.full(len(pool), items + 1, np.int8), np.zeros(len(pool), np.int32)
    for _ in range(count - 1):
        distance = sum((column != place).astype(np.int8) for column, place in zip(columns, pool[chosen[-1]]))
        least, summed = np.minimum(least, distance), summed + distance
        furthest = np.flatnonzero(least == least.max())
        chosen.append(int(furthest[summed[furthest].argmax()]))
    orders = pool[chosen].astype(np.int64)
    orders.flags.writeable = False  # all callers share the cached array
    return orders
