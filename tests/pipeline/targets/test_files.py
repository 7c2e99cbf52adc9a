"""`pack` makes members of masks, VOC's and COCO's files; names and numbers of classes travel with the index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import UserError
from pipeline.shards.corpus import Corpus, Sample
from pipeline.shards.index import Index
from pipeline.shards.opening import open_corpus
from pipeline.shards.pack import pack
from pipeline.targets import open_targets
from pipeline.targets.boxes import read_boxes
from pipeline.targets.masks import read_mask
from tests.folders import bytes_below

VOC = """<annotation><size><width>{width}</width><height>30</height><depth>3</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four photos of 40 x 30 pixels, one in a folder of its own."""
    root = tmp_path / "photos"
    for name in ("a.jpg", "b.jpg", "deep/c.jpg", "d.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (len(name) * 20, 9, 9)).save(root / name)
    return root


def mask(path: Path, *numbers: int, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(numbers, np.uint8), (30, 40))).save(path, **options)


def voc(path: Path, *boxes: tuple[str, tuple[int, int, int, int]], width: int = 40, difficult: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = "".join(OBJECT.format(name=name, box=box, difficult=difficult) for name, box in boxes)
    path.write_text(VOC.format(width=width, objects=objects))


def opened(folder: Path | str, member: str) -> tuple[Corpus, dict[str, Sample]]:
    """The corpus, and its samples by key, each with that member as its target."""
    from dataclasses import replace

    corpus = replace(open_corpus(str(folder)), target=member)
    samples = [sample for i, count in enumerate(corpus.counts) for sample in corpus.read(i, range(count))]
    return corpus, {sample.key: sample for sample in samples}


def test_masks_become_members_and_the_numbers_that_occur_are_the_classes(photos: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    mask(masks / "a.png", 0, 7, 255)
    mask(masks / "deep/c.png", 33)
    mask(masks / "d.png", 7)
    mask(masks / "other.png", 9)
    report = pack(str(photos), str(tmp_path / "out"), targets=open_targets(masks=str(masks)))
    assert (report.samples, report.classes, report.faulty) == (3, ["0", "7", "33"], {})
    assert report.skipped == {"image without a target (seg.png)": 1, "target (seg.png) without an image": 1}
    corpus, samples = opened(tmp_path / "out", "seg.png")
    assert (corpus.classes, corpus.numbers) == (["0", "7", "33"], [0, 7, 33])
    assert set(samples) == {"a", "d", "deep/c"}
    assert bytes(samples["a"].target) == (masks / "a.png").read_bytes()
    assert bytes(samples["d"].encoded) == (photos / "d.png").read_bytes()
    assert {sample.label for sample in samples.values()} == {-1}
    assert np.unique(read_mask(samples["deep/c"].target)).tolist() == [33]
    assert open_corpus(str(tmp_path / "out")).read(0, [0])[0].target == b""


def test_classes_json_names_the_numbers_of_masks(photos: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    mask(masks / "a.png", 0, 7)
    mask(masks / "b.png", 8)
    Image.new("RGBA", (40, 30)).save(masks / "d.png")
    (masks / "classes.json").write_text('{"7": "road", "0": "background", "300": "sky"}')
    report = pack(str(photos), str(tmp_path / "out"), targets=open_targets(masks=str(masks)))
    assert report.classes == ["background", "road", "sky"]
    assert report.faulty == {
        "its mask has the number 8, which classes.json does not name": 1,
        "its mask has colours (RGBA); save class numbers as grey levels or as places in a palette": 1,
    }
    assert Index.load(str(tmp_path / "out")).numbers == [0, 7, 300]
    assert "classes.json does not name\tb.jpg" in (tmp_path / "out/skipped.tsv").read_text()


def test_boxes_of_voc_become_cocos_and_degenerate_ones_are_named(photos: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    voc(notes / "a.xml", ("dog", (1, 1, 10, 5)), ("cat", (11, 2, 40, 30)))
    voc(notes / "b.xml", ("dog", (4, 4, 4, 9)), width=0)
    voc(notes / "c.xml")
    (notes / "d.xml").write_text("<annotation>")
    report = pack(str(photos), str(tmp_path / "out"), targets=open_targets(voc=str(notes)))
    assert (report.samples, report.classes) == (3, ["cat", "dog"])
    assert report.skipped == {"image without a target (boxes.json)": 1}
    assert report.faulty.pop("its box 1 has no area: it is 0 wide and 6 high") == 1
    assert ["no annotation as VOC's" in reason for reason in report.faulty] == [True]
    _, samples = opened(tmp_path / "out", "boxes.json")
    found = read_boxes(samples["a"].target, (30, 40))
    assert found.corners.tolist() == [[0, 0, 10, 5], [10, 1, 40, 30]]
    assert found.classes.tolist() == [1, 0]
    assert json.loads(bytes(samples["a"].target))["annotations"][1]["category"] == "cat"
    assert not len(read_boxes(samples["deep/c"].target, (30, 40)).classes)


def test_ids_of_coco_keep_their_gaps_and_crowds_are_told(photos: Path, tmp_path: Path) -> None:
    sizes = {"height": 30, "width": 40}
    document = {
        "images": [{"id": n, "file_name": name, **sizes} for n, name in enumerate(("a.jpg", "deep/c.jpg", "gone.jpg"))],
        "annotations": [
            {"image_id": 0, "bbox": [1, 2, 3, 4], "category_id": 90, "iscrowd": 1, "segmentation": {"size": [30, 40]}},
            {"image_id": 0, "bbox": [5.5, 2, 3, 4], "category_id": 1, "iscrowd": 0},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}],
    }
    (tmp_path / "all.json").write_text(json.dumps(document))
    report = pack(str(photos), str(tmp_path / "out"), targets=open_targets(coco=str(tmp_path / "all.json")))
    assert (report.samples, report.classes) == (2, ["person", "toothbrush"])
    assert report.skipped == {"image without a target (boxes.json)": 2, "target (boxes.json) without an image": 1}
    corpus, samples = opened(tmp_path / "out", "boxes.json")
    assert corpus.numbers == [1, 90]
    found = read_boxes(samples["a"].target, (30, 40))
    assert (found.classes.tolist(), found.crowd.tolist()) == ([90, 1], [True, False])
    assert not len(read_boxes(samples["deep/c"].target).classes)


def test_the_sides_of_a_split_have_the_same_classes_and_a_pack_makes_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    for n, name in enumerate(("a", "b", "deep/c", "d")):
        mask(masks / f"{name}.png", n)
    made = []
    for out in (tmp_path / "one", tmp_path / "two"):
        pack(str(photos), str(out), targets=open_targets(masks=str(masks)), test=0.5)
        assert [open_corpus(str(out / side)).classes for side in ("train", "test")] == [["0", "1", "2", "3"]] * 2
        made.append(bytes_below(out))
    assert made[0] == made[1]


def test_a_pack_of_classes_writes_no_numbers(photos: Path, tmp_path: Path) -> None:
    pack(str(photos), str(tmp_path / "out"), labels="none")
    assert Index.load(str(tmp_path / "out")).numbers is None
    assert b"numbers" not in (tmp_path / "out/index.parquet").read_bytes()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"masks": "photos", "voc": "photos"}, "--masks and --voc: a pack has one kind of targets"),
        ({"voc": "photos"}, "holds no XML"),
        ({"masks": "empty"}, "holds no PNG"),
        ({"coco": "photos/a.jpg"}, "no JSON"),
        ({"coco": "nowhere.json"}, "no such file"),
        ({"coco": "other.json"}, "not COCO's form"),
    ],
)
def test_files_of_another_kind_are_refused_in_words(photos: Path, tmp_path: Path, given: dict[str, str], words: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(UserError, match=words):
        open_targets(**{name: str(tmp_path / path) for name, path in given.items()})


def test_an_annotation_that_declares_entities_is_not_read(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text('<!DOCTYPE x [<!ENTITY a "aaaa">]><annotation>&a;</annotation>')
    with pytest.raises(UserError, match="declares entities"):
        open_targets(voc=str(tmp_path))
