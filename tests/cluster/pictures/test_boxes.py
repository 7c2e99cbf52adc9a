"""Boxes over photos: each class in its colour, found ones with class and score."""

from __future__ import annotations

import numpy as np

from cluster.pictures.boxes import boxed, drawn, legend, surest
from cluster.pictures.masks import class_colour


def test_a_box_is_drawn_where_it_is_in_the_colour_of_its_class() -> None:
    photo = np.full((52, 52, 3), 90, np.uint8)
    boxes = np.array([[13, 13, 39, 26, 1, 0.9], [0, 0, 52, 52, 0, 0.2], [-1] * 6], np.float32)
    boxes = surest(boxes, 5)
    out = drawn(photo, boxes, [], False)
    assert out.shape == (208, 208, 3)
    for row, column in ((52, 100), (104, 100), (80, 52), (80, 156)):
        assert tuple(out[row, column]) == class_colour(2), (row, column)
    assert tuple(out[80, 100]) == tuple(out[1, 100]) == (90, 90, 90)
    named = drawn(photo, boxes, ["a", "b"], True)
    assert (named[40:51, 53:60] == np.array(class_colour(2))).all(-1).any()


def test_the_surest_are_drawn_and_many_without_words() -> None:
    rng = np.random.default_rng(0)
    boxes = np.column_stack([np.tile([10, 10, 40, 40], (9, 1)), np.ones(9), rng.uniform(0.31, 1, 9)])
    assert surest(boxes, 4)[:, 5].tolist() == sorted(boxes[:, 5])[-4:]
    photo = np.full((52, 52, 3), 90, np.uint8)
    written = [(drawn(photo, surest(boxes, most), ["a", "b"], True) < 60).all(-1).any() for most in (4, 9)]
    assert written == [True, False]


def test_a_sheet_has_a_row_a_photo_and_a_column_for_each_start() -> None:
    boxes = np.full((2, 3, 6), -1, np.float32)
    boxes[0, 0], boxes[1, 0] = [1, 1, 9, 9, 2, 0.8], [1, 1, 9, 9, 0, 0.1]
    pictures = {
        "image": np.zeros((2, 16, 16, 3), np.uint8),
        "truth": boxes,
        "random": boxes[:, :0],
        "classes": np.array(["a", "b", "c"]),
    }
    two = boxed(pictures)
    three = boxed({**pictures, "pretrained": boxes})
    assert three.width > two.width
    assert three.height == two.height > 2 * 208
    assert [name for name, _ in legend(pictures)] == ["c"]
