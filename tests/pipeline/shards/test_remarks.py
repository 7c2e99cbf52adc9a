"""Samples with several images and labels that are not numbers are counted, and reported when a corpus is opened or inspected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.materialize.run import plan
from pipeline.recipe import parse_recipe
from pipeline.shards.corpus import Corpus
from pipeline.shards.inspect import inspect
from pipeline.shards.members import Members, sidecar
from pipeline.shards.opening import open_corpus
from pipeline.shards.pack import pack
from pipeline.shards.scanning import read_label, scan


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (b"3", 3),
        (b" 12 \n", 12),
        (b"\xef\xbb\xbf5\r\n", 5),
        (b"3.0", 3),
        (b"3.", 3),
        (b"7\0", 7),
        (b"+1", 1),
        (b"007", 7),
        (b'"4"', 4),
        (b"'4'\n", 4),
        (b"2147483647", 2**31 - 1),
    ],
)
def test_a_number_is_a_label_whatever_it_is_wrapped_in(text: bytes, label: int) -> None:
    assert read_label(text) == (label, None)


@pytest.mark.parametrize(
    "text", [b"cat", b"", b"3.5", b"-7", b"2147483648", b"1 2", b"1e3", b"[1]", b"\xff\xfe3\0", b"\xd9\xa3", b"0x10", b"nan"]
)
def test_what_is_no_class_number_is_no_label(text: bytes) -> None:
    label, shown = read_label(text)
    assert label is None
    assert shown is not None
    assert shown.isascii()


def test_minus_one_says_that_there_is_no_label() -> None:
    assert read_label(b"-1") == (None, None)


def read(corpus: Corpus) -> list[tuple[str, str | None, int]]:
    return [(sample.key, sample.problem, sample.label) for sample in corpus.read(0, np.arange(int(corpus.counts[0])))]


def test_text_in_cls_leaves_a_sample_without_label_and_that_is_said_once(
    tmp_path: Path, make_tar, caplog: pytest.LogCaptureFixture
) -> None:
    labels = {"a": b"cat", "b": b"dog\x1b[31m", "c": b"-1", "d": b"4"}
    make_tar(
        tmp_path / "s.tar", [member for key, text in labels.items() for member in ((f"{key}.jpg", b"x"), (f"{key}.cls", text))]
    )
    words = "2 samples have a `cls` that is no class number, such as a ('cat'): they have no label"
    corpus = open_corpus(str(tmp_path))
    assert caplog.text.count(words) == 1
    assert read(corpus) == [("a", None, -1), ("b", None, -1), ("c", None, -1), ("d", None, 4)]
    assert read(open_corpus(str(tmp_path))) == read(corpus)
    assert caplog.text.count(words) == 1, "it is said when a shard is scanned"
    assert corpus.unread_labels(0) == ["a ('cat')", "b ('dog\\x1b[31m')"]
    report = inspect(corpus)
    assert (report.unlabelled, report.labels) == (3, {"4": 1})
    assert [remark.startswith(words) for remark in report.remarks] == [True]


def test_a_table_of_an_earlier_version_puts_no_sample_aside_for_its_label(tmp_path: Path, make_tar) -> None:
    path = make_tar(tmp_path / "s.tar", [("a.jpg", b"x"), ("a.cls", b"cat"), ("b.txt", b"y")])
    found = scan(str(path))
    problems = pa.array(["cls is not an integer: 'cat'", found.table.column("problem")[1].as_py()])
    Members(found.table.set_column(6, "problem", problems), found.shard_bytes).save(sidecar(str(path)) or "")
    assert Members.load(sidecar(str(path)) or "").table.equals(found.table)


DOTTED = [(f"IMG.000{n}.jpg", b"x") for n in range(3)]
DEPTH = [member for n in range(2) for member in ((f"{n}.depth.png", b"d"), (f"{n}.jpg", b"p"), (f"{n}.json", b"{}"))]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (DOTTED, "1 sample holds several images, such as IMG (0000.jpg, 0001.jpg, 0002.jpg): only the first is used"),
        (DEPTH, "2 samples hold several images, such as 0 (depth.png, jpg): only the first is used"),
    ],
    ids=["dotted names", "a depth map before the photo"],
)
def test_samples_of_several_images_are_said_once_with_the_key_that_chooses(
    tmp_path: Path, make_tar, caplog: pytest.LogCaptureFixture, members: list[tuple[str, bytes]], words: str
) -> None:
    make_tar(tmp_path / "s.tar", members)
    corpus = open_corpus(str(tmp_path))
    assert caplog.text.count(words) == 1
    assert "`corpus.image` chooses" in caplog.text
    assert ("pack them anew" in caplog.text) == (members is DOTTED)
    open_corpus(str(tmp_path))
    assert caplog.text.count(words) == 1
    assert [remark.startswith(words) for remark in inspect(corpus).remarks] == [True]


@pytest.mark.parametrize(("image", "words"), [(None, "rendered of the first"), ("jpg", "rendered of the member jpg")])
def test_a_render_says_what_becomes_of_the_other_images(
    tmp_path: Path, make_tar, caplog: pytest.LogCaptureFixture, image: str | None, words: str
) -> None:
    make_tar(tmp_path / "s" / "empty.tar", [])
    make_tar(tmp_path / "s" / "s.tar", DEPTH)
    corpus = {"shards": str(tmp_path / "s"), "image": image}
    spec = parse_recipe({"name": "r", "seed": 0, "engine": "cpu", "corpus": corpus, "tasks": {"rotation": {}}})
    plan(spec, str(tmp_path / "out"), {})
    assert words in caplog.text
    assert "the other images are left out" in caplog.text


def test_pack_says_that_images_named_alike_are_kept_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "src" / "x").mkdir(parents=True)
    for name in ("IMG.0001.jpg", "IMG.0002.jpg", "a.jpg", "b.jpg"):
        (tmp_path / "src" / "x" / name).write_bytes(b"x")
    assert pack(str(tmp_path / "src"), str(tmp_path / "out")).samples == 4
    assert "2 images are named like another up to the first dot, such as x/IMG.0001.jpg and x/IMG.0002.jpg" in caplog.text
    caplog.clear()
    pack(str(tmp_path / "src"), str(tmp_path / "clips"), clips=True)
    assert caplog.text == ""


@pytest.mark.parametrize("chosen", [{"image": "jpg"}, {"frames": 2}])
def test_nothing_is_said_where_the_image_is_chosen_or_all_are_frames(
    tmp_path: Path, make_tar, caplog: pytest.LogCaptureFixture, chosen: dict
) -> None:
    make_tar(tmp_path / "s.tar", DEPTH)
    assert inspect(open_corpus(str(tmp_path), **chosen)).remarks == []
    assert caplog.text == ""


def test_single_images_and_no_labels_are_no_remark(tmp_path: Path, make_tar) -> None:
    make_tar(tmp_path / "s.tar", [("a.jpg", b"x"), ("a.json", b"{}"), ("b.txt", b"y"), ("c.jpg", b"z"), ("c.cls", b"1")])
    make_tar(tmp_path / "none.tar", [])
    assert inspect(open_corpus(str(tmp_path))).remarks == []
