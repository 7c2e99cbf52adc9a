"""Inspection counts masks and boxes, and names the ones that training will refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.reports.terminal import inspect_tables, print_out
from pipeline.shards.inspect import CorpusReport, TargetCounts, inspect
from pipeline.shards.opening import open_corpus
from pipeline.shards.pack import pack
from pipeline.targets import TargetReader, open_targets


def photos_in(folder: Path, count: int) -> None:
    """Grey photos of 20 x 10 pixels."""
    folder.mkdir()
    for n in range(count):
        Image.new("RGB", (20, 10), (n, n, n)).save(folder / f"{n}.jpg")


def report_of(shards: Path) -> CorpusReport:
    corpus = open_corpus(str(shards))
    return inspect(corpus, targets=TargetReader(None if corpus.numbers is None else frozenset(corpus.numbers)))


def test_boxes_are_counted_by_class_with_crowds_and_those_without_area(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos_in(tmp_path / "photos", 4)

    def box(image: int, left: int, across: int, category: int = 3, crowd: int = 0) -> dict:
        return {"image_id": image, "bbox": [left, 1, across, 5], "category_id": category, "iscrowd": crowd}

    coco = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 20, "height": 10} for n in range(4)],
        "annotations": [
            box(0, 2, 4),
            box(0, 5, 4, 90),
            box(1, 2, 4, 3, 1),
            box(1, 3, 4),
            box(2, 4, 0),
            box(2, 4, -1),
            box(2, 1, 9),
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 90, "name": "brush"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    pack(str(tmp_path / "photos"), str(tmp_path / "shards"), targets=open_targets(coco=str(tmp_path / "coco.json")))
    report = report_of(tmp_path / "shards")
    assert report.boxes == TargetCounts(images=3, classes={"cat": 2, "brush": 1}, ignored=1, empty=1, degenerate=2)
    assert report.masks is None
    assert [(row.key, row.reason) for row in report.unfit] == [("2", "its box 1 has no area: it is 0 wide and 5 high")]
    assert report.quarantine == []
    assert json.loads(json.dumps(report.as_dict()))["boxes"]["classes"] == {"cat": 2, "brush": 1}
    print_out(*inspect_tables(report))
    shown = capsys.readouterr().out
    assert "3 in 3 images, 1 of which have none: 2 classes: cat 2, brush 1; 1 crowds; 2 without area" in shown
    assert "its box 1 has no area" in shown


def test_masks_are_counted_by_pixels_and_unfit_ones_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos_in(tmp_path / "photos", 2)
    (tmp_path / "masks").mkdir()
    mask = np.zeros((10, 20), np.uint8)
    mask[:, 5:10], mask[:, 10:] = 7, 255
    Image.fromarray(mask).save(tmp_path / "masks/0.png")
    Image.new("L", (30, 10)).save(tmp_path / "masks/1.png")
    pack(str(tmp_path / "photos"), str(tmp_path / "shards"), targets=open_targets(masks=str(tmp_path / "masks")))
    report = report_of(tmp_path / "shards")
    assert report.masks == TargetCounts(images=1, classes={"0": 50, "7": 50}, ignored=100, empty=0, degenerate=0)
    assert report.boxes is None
    assert [row.reason for row in report.unfit] == ["its mask has 30x10 pixels, and the image 20x10"]
    print_out(*inspect_tables(report))
    assert "of 1 image: 2 classes: 0 50.0%, 7 50.0%; 100 pixels that do not count" in capsys.readouterr().out


def test_a_number_that_the_index_does_not_name_and_a_missing_file_are_told() -> None:
    reader = TargetReader(frozenset({1}))
    body = json.dumps([{"bbox": [0, 0, 3, 3], "category_id": 2}]).encode()
    counts, why = reader.look("boxes.json", body, 10, 20)
    assert (counts.images, why) == (0, "its boxes.json has the number 2, and no class has that number")
    assert TargetReader().look("boxes.json", body, 10, 20)[1] is None
    assert reader.look("seg.png", b"", 10, 20)[1] == "it has no seg.png"
