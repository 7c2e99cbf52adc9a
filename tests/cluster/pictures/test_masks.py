"""Masks over photos: each class in its colour, pixels that do not count in grey."""

from __future__ import annotations

import numpy as np

from cluster.pictures.masks import class_colour, legend, masked, painted_over


def test_labels_colour_a_grey_photo_and_pixels_that_do_not_count_stay_grey() -> None:
    photos = np.full((1, 2, 2, 3), (30, 60, 90), np.uint8)
    out = painted_over(photos, np.array([[[1, 2], [255, 0]]], np.uint8), 3)
    for place, label in (((0, 0), 1), ((0, 1), 2), ((1, 1), 0)):
        assert out[0][place].tolist() == [round(0.35 * 60 + 0.65 * value) for value in class_colour(label)]
    assert out[0, 1, 0].tolist() == [60, 60, 60]
    assert len({class_colour(label) for label in range(255)}) > 200


def test_a_sheet_has_a_row_a_photo_and_a_column_for_each_start() -> None:
    masks = np.zeros((2, 8, 8), np.uint8)
    masks[1, 0] = 2
    pictures = {
        "image": np.zeros((2, 8, 8, 3), np.uint8),
        "truth": masks,
        "random": masks * 0,
        "classes": np.array(["a", "b", "c"]),
    }
    three = masked(pictures)
    four = masked({**pictures, "pretrained": masks})
    assert four.width > three.width
    assert four.height == three.height > 2 * 100
    assert [name for name, _ in legend(pictures)] == ["a", "c"]
