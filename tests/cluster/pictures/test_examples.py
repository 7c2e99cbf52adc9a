"""Pictures of what a network does: rows of photos, with a heading above each column."""

from __future__ import annotations

import numpy as np

from cluster.pictures.examples import neighbours, painted


def test_what_a_network_paints_has_a_row_a_photo_and_a_heading_a_column() -> None:
    parts = {"input": 0, "answer": 100, "target": 200}
    pictures = {f"occlusion.{part}": np.full((2, 40, 40, 3), level, np.uint8) for part, level in parts.items()}
    (name,), (picture,) = zip(*painted(pictures).items())
    pixels = np.asarray(picture)
    assert (name, pixels.shape) == ("occlusion", (16 + 2 * 112 + 6, 3 * 112 + 2 * 6, 3))
    for column, level in enumerate(parts.values()):
        across = slice(118 * column, 118 * column + 112)
        assert (pixels[:16, across] < 200).any()
        for row in range(2):
            assert (pixels[16 + 118 * row : 16 + 118 * row + 112, across] == level).all()


def test_the_neighbours_of_a_photo_lie_in_its_row() -> None:
    rows = np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1, 1) * np.full((40, 40, 3), 40, np.uint8)
    pixels = np.asarray(neighbours({"neighbours": rows}))
    assert [int(pixels[118 * row + 50, x, 0]) for row in range(2) for x in (50, 190, 300)] == [0, 40, 80, 120, 160, 200]
