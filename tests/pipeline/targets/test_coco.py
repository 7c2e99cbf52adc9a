"""COCO's outlines become masks: polygons and both kinds of run lengths, small objects on large ones."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.targets import open_targets
from pipeline.targets.masks import read_mask

HEIGHT, WIDTH = 8, 12


def rectangle(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    """A polygon along the edges of pixels."""
    return [[left, top, right, top, right, bottom, left, bottom]]


def runs(inside: np.ndarray) -> dict[str, Any]:
    """Run lengths of a mask, column by column, beginning with those outside."""
    flat = np.concatenate([[0], inside.T.ravel().astype(int), [2]])
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges])).tolist()
    return {"size": list(inside.shape), "counts": counts}


def written(tmp_path: Path, *annotations: dict[str, Any], categories: dict[int, str] | None = None) -> str:
    """The path of a COCO file of one image, `a.jpg`."""
    named = {3: "cat", 300: "brush"} if categories is None else categories
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}],
        "annotations": [{"image_id": 1, **row} for row in annotations],
        "categories": [{"id": number, "name": name} for number, name in named.items()],
    }
    (tmp_path / "coco.json").write_text(json.dumps(document))
    return str(tmp_path / "coco.json")


def test_outlines_of_all_kinds_become_a_mask(tmp_path: Path) -> None:
    hole = np.zeros((HEIGHT, WIDTH), bool)
    hole[1:7, 1:6] = True
    hole[3:5, 2:4] = False
    from faster_coco_eval import mask

    packed = mask.encode(np.asfortranarray(hole.T[::-1].T.astype(np.uint8)))
    annotations = [
        {"category_id": 3, "segmentation": rectangle(2, 3, 4, 5)},
        {"category_id": 300, "segmentation": runs(hole)},
        {"category_id": 3, "segmentation": {"size": packed["size"], "counts": packed["counts"].decode()}, "iscrowd": 1},
    ]
    targets = open_targets(coco=written(tmp_path, *annotations), outlines=True)
    assert targets is not None
    found = read_mask(targets.body("a.jpg"), (HEIGHT, WIDTH))
    wanted = np.zeros((HEIGHT, WIDTH), int)
    wanted[hole] = 300
    wanted[hole[:, ::-1]] = 255
    wanted[3:5, 2:4] = 3
    assert found.tolist() == wanted.tolist()
    assert [(one.number, one.name) for one in targets.classes()] == [(0, "background"), (3, "cat"), (300, "brush")]
    assert targets.faults() == {}


def test_a_small_object_lies_on_a_large_one_whatever_their_order(tmp_path: Path) -> None:
    small, large = ({"category_id": n, "segmentation": rectangle(2, 2, 2 + n, 4)} for n in (3, 5))
    for rows in ((small, large), (large, small)):
        targets = open_targets(coco=written(tmp_path, *rows, categories={3: "cat", 5: "dog"}), outlines=True)
        assert targets is not None
        body = targets.body("a.jpg")
        assert Image.open(io.BytesIO(body)).mode == "L"
        assert read_mask(body)[2].tolist() == [0, 0, 3, 3, 3, 5, 5, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    "outline",
    [
        None,
        [],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, "6"]],
        [[0, 0, 1e9, 0, 1e9, 1e9]],
        [[0, 0, float("nan"), 0, 4, 4]],
        {"size": [3, 3], "counts": [9]},
        {"size": [HEIGHT, WIDTH], "counts": [500, 3]},
        {"size": [HEIGHT, WIDTH], "counts": "zzzzzzzz"},
        {"size": [HEIGHT, WIDTH], "counts": [1]},
        {"size": [HEIGHT, WIDTH]},
    ],
)
def test_an_outline_that_cannot_be_decoded_is_named_and_its_photo_has_no_mask(tmp_path: Path, outline: Any) -> None:
    good = {"category_id": 3, "segmentation": rectangle(0, 0, 3, 3)}
    targets = open_targets(coco=written(tmp_path, good, {"category_id": 3, "segmentation": outline}), outlines=True)
    assert targets is not None
    assert targets.body("a.jpg") == b""
    assert "its outline 2" in targets.faults()["a.jpg"]


def test_what_makes_no_masks_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (0, 255, 70_000):
        with pytest.raises(UserError, match=rf"the category {number} \(cat\) cannot be a number in masks"):
            open_targets(coco=written(tmp_path, categories={number: "cat"}), outlines=True)
    with pytest.raises(UserError, match="give --coco FILE"):
        open_targets(masks="m", outlines=True)
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UserError, match=r"'\.\[detection\]'"):
        open_targets(coco=written(tmp_path), outlines=True)
