"""Boxes are read with COCO's fields, checked, and moved and clipped as their images are cut."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.targets import BadTarget, BoxTarget, Crops
from pipeline.targets.boxes import LEAST_SIDE, boxes_json, read_boxes


def box(*bbox: Any, category_id: Any = 3, **more: Any) -> dict[str, Any]:
    """One of COCO's annotations."""
    return {"bbox": list(bbox), "category_id": category_id, **more}


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_a_moved_box_holds_the_pixels_of_the_crop_that_the_box_holds_in_the_photo(data: st.DataObject) -> None:
    """The reference paints each box on the photo, at a scale at which the crop is a whole number of photo pixels."""
    size, times = data.draw(st.integers(2, 12)), data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    h, w = size * times[0], size * times[1]
    height, width = h + data.draw(st.integers(0, 9)), w + data.draw(st.integers(0, 9))
    top, left = data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w))
    mirror, drawn = data.draw(st.booleans()), []
    for _ in range(data.draw(st.integers(0, 4))):
        x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
        drawn.append((x, y, data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y))))
    target = BoxTarget({number: 10 + number for number in range(4)}, most=5)
    rows = [box(*bbox, category_id=number, iscrowd=number % 2) for number, bbox in enumerate(drawn)]
    crops = Crops(np.array([[top, left, h, w]], np.int32), np.array([mirror]), size)

    made = target.columns([target.read(boxes_json(height, width, rows), height, width)], crops)

    wanted = []
    for number, (x, y, across, down) in enumerate(drawn):
        painted = np.zeros((height, width))
        painted[y : y + down, x : x + across] = 1
        crop = painted[top : top + h, left : left + w]
        crop = crop[:, ::-1] if mirror else crop
        columns, lines = np.flatnonzero(crop.any(axis=0)), np.flatnonzero(crop.any(axis=1))
        if len(columns) and len(columns) / times[1] >= LEAST_SIDE and len(lines) / times[0] >= LEAST_SIDE:
            corners = [columns[0] / times[1], lines[0] / times[0], (columns[-1] + 1) / times[1], (lines[-1] + 1) / times[0]]
            wanted.append((corners, 10 + number, number % 2 == 1))
    count = len(wanted)
    assert made["boxes"].dtype == np.float32
    np.testing.assert_allclose(made["boxes"][0, :count], np.array([w[0] for w in wanted]).reshape(-1, 4), atol=1e-4)
    assert made["box_class"][0].tolist() == [w[1] for w in wanted] + [-1] * (5 - count)
    assert made["crowd"][0].tolist() == [w[2] for w in wanted] + [False] * (5 - count)
    assert not made["boxes"][0, count:].any()
    assert sum(column[0].nbytes for column in made.values()) == target.row_bytes(size)


def test_an_image_without_boxes_is_a_good_one_and_a_sample_that_cannot_be_used_has_none() -> None:
    target = BoxTarget({3: 0}, most=2)
    crops = Crops(np.array([[0, 0, 8, 8]] * 2, np.int32), np.zeros(2, bool), 8)
    columns = target.columns([target.read(boxes_json(8, 8, []), 8, 8), None], crops)
    assert (columns["box_class"] == -1).all()
    assert not columns["boxes"].any()


def test_a_box_over_the_edge_is_clipped_and_difficult_ones_count_as_crowds() -> None:
    rows = [box(-2, 1, 5, 4), box(6, 6, 9, 9, difficult=1), box(1, 1, 2, 2, iscrowd=1)]
    found = read_boxes(json.dumps(rows).encode(), (10, 10))
    assert found.corners.tolist() == [[0, 1, 3, 5], [6, 6, 10, 10], [1, 1, 3, 3]]
    assert found.crowd.tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"7", "no list of annotations"),
        (b'{"annotations": 3}', "no list of annotations"),
        (b"[3]", "no list of annotations"),
        (boxes_json(20, 10, []), "of an image of 10x20 pixels, and it has 20x10"),
        (boxes_json(10, 20, [box(0, 0, 1)]), "bbox of its box 1 is not four numbers"),
        (boxes_json(10, 20, [box(0, 0, 1, "2")]), "bbox of its box 1 is not four numbers"),
        (b'[{"bbox": [0, 0, NaN, 1], "category_id": 3}]', "bbox of its box 1 is not four numbers"),
        (b'[{"bbox": [0, 0, 1e400, 1], "category_id": 3}]', "bbox of its box 1 is not four numbers"),
        (boxes_json(10, 20, [box(0, 0, 1, 1, category_id="cat")]), "no category_id that is a whole number"),
        (boxes_json(10, 20, [box(0, 0, 1, 1), box(504, 337, 0, 0)]), "box 2 has no area: it is 0 wide and 0 high"),
        (boxes_json(10, 20, [box(5, 5, -2, 3)]), "box 1 has no area: it is -2 wide and 3 high"),
        (boxes_json(10, 20, [box(20, 3, 4, 4)]), "box 1 lies outside of the image: from 20, 3 to 24, 7"),
        (boxes_json(10, 20, [box(0, 0, 1, 1, category_id=8)]), "box of class 8, and no class has that number"),
        (boxes_json(10, 20, [box(0, 0, 1, 1)] * 4), "it has 4 boxes, and 3 are the most"),
    ],
)  # fmt: skip
def test_boxes_that_cannot_be_used_are_refused_in_words(body: bytes, reason: str) -> None:
    with pytest.raises(BadTarget, match=reason):
        BoxTarget({3: 0}, most=3).read(body, 10, 20)
