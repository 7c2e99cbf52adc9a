"""The index of a shard says where everything lies and what is wrong with it, and survives being written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.draws import sample_id
from pipeline.errors import ShardError
from pipeline.shards.members import Members, sidecar
from pipeline.shards.opening import open_corpus
from pipeline.shards.scanning import load_or_scan, scan


def rows(members: Members) -> dict[str, tuple[str, int, str | None]]:
    table = members.table.to_pydict()
    return {
        key: (ext, label, problem)
        for key, ext, label, problem in zip(table["key"], table["ext"], members.labels, table["problem"])
    }


def test_a_sample_is_its_adjacent_members_and_the_first_image_is_its_image(tmp_path: Path, make_tar) -> None:
    path = make_tar(
        tmp_path / "s.tar",
        [
            ("d/a.txt", b"t"),
            ("d/a.LEFT.JPG", b"left"),
            ("d/a.png", b"png!"),
            ("d/a.cls", b"7\n"),
            ("b.jpg", b""),
            ("README", b""),
        ],
    )
    members = scan(str(path))
    first, second = members.table.to_pylist()
    assert (first["key"], first["ext"], first["label"]) == ("d/a", "left.jpg", 7)
    assert path.read_bytes()[first["offset"] :][: first["size"]] == b"left"
    assert [part["ext"] for part in first["others"]] == ["txt", "png", "cls"]
    assert [path.read_bytes()[part["offset"] :][: part["size"]] for part in first["others"]] == [b"t", b"png!", b"7\n"]
    assert (second["key"], second["size"], second["label"], second["problem"]) == ("b", 0, None, None)
    assert members.ids.tolist() == [sample_id("d/a"), sample_id("b")]
    assert members.labels.dtype == np.int64
    assert members.labels.tolist() == [7, -1]


def test_what_is_wrong_with_a_sample_keeps_its_row_and_is_said(tmp_path: Path, make_tar) -> None:
    path = make_tar(
        tmp_path / "s.tar",
        [
            ("text.txt", b""),
            ("twice.jpg", b"1"),
            ("twice.jpg", b"2"),
            ("word.jpg", b""),
            ("word.cls", b"cat"),
            ("minus.jpg", b""),
            ("minus.cls", b"-7"),
            ("none.jpg", b""),
            ("none.cls", b"-1"),
            ("good.jpg", b""),
            ("good.cls", b" 12 "),
            ("word.png", b""),
        ],
    )
    table = scan(str(path)).table.to_pydict()
    assert list(zip(table["key"], table["label"], table["problem"])) == [
        ("text", None, "no image member (there are: txt)"),
        ("twice", None, "two members with extension jpg"),
        ("word", None, None),
        ("minus", None, None),
        ("none", None, None),
        ("good", 12, None),
        ("word", None, "a sample of this key came before in the shard (members of one sample must be adjacent)"),
    ]


def test_a_wanted_extension_goes_before_the_order(tmp_path: Path, make_tar) -> None:
    path = make_tar(
        tmp_path / "s.tar",
        [("a.jpg", b"1"), ("a.left.png", b"2"), ("a.png", b"3"), ("b.seg.png", b"4"), ("c.jpg", b"5"), ("d.bin", b"6")],
    )
    assert rows(scan(str(path), prefer=".PNG")) == {
        "a": ("png", -1, None),
        "b": ("seg.png", -1, None),
        "c": ("", -1, "no member with extension png (there are: jpg)"),
        "d": ("", -1, "no member with extension png (there are: bin)"),
    }
    assert rows(scan(str(path), prefer="bin"))["d"] == ("bin", -1, None)
    assert rows(scan(str(path)).preferring("jpg"))["a"] == ("jpg", -1, None)
    table = scan(str(path), prefer="png").table.to_pylist()
    assert path.read_bytes()[table[0]["offset"] :][:1] == b"3"


def test_a_saved_index_is_read_back_the_same(tmp_path: Path, make_tar) -> None:
    path = make_tar(tmp_path / "s.tar", [("ä/a.jpg", b"x"), ("ä/a.cls", b"1"), ("b.txt", b"")])
    members = scan(str(path))
    beside = sidecar(str(path))
    assert beside == f"{tmp_path}/s.members.parquet"
    members.save(beside)
    loaded = Members.load(beside)
    assert loaded.table.equals(members.table)
    assert loaded.shard_bytes == path.stat().st_size


def test_a_sidecar_that_does_not_fit_is_not_used(tmp_path: Path, make_tar) -> None:
    path = make_tar(tmp_path / "s.tar", [("old.jpg", b"x")])
    size = path.stat().st_size
    beside = Path(sidecar(str(path)) or "")
    scan(str(path)).save(str(beside))
    assert load_or_scan(str(path), size)[1] is False
    beside.write_bytes(beside.read_bytes()[:-20])
    assert load_or_scan(str(path), size)[1] is True
    scan(str(path)).save(str(beside))
    make_tar(path, [(f"new{n}.jpg", bytes(9000)) for n in range(2)])
    members, scanned = load_or_scan(str(path), path.stat().st_size)
    assert (members.keys, scanned) == (["new0", "new1"], True)


IMPOSSIBLE = {
    "no key": {"key": None},
    "an empty key": {"key": ""},
    "a key that leaves its folder": {"key": "../../up"},
    "a key with an escape": {"key": "\x1b[2J"},
    "no extension": {"ext": None},
    "no offset": {"offset": None},
    "a negative offset": {"offset": -512},
    "no size": {"size": None},
    "30 GB": {"size": 30 * 2**30},
    "beyond all integers": {"offset": 2**63 - 1, "size": 2**63 - 1},
    "a negative label": {"label": -7},
    "no list": {"others": None},
    "an empty place in a list": {"others": [None]},
    "another member outside": {"others": [{"ext": "cls", "offset": 0, "size": 10**9}]},
    "another member without a place": {"others": [{"ext": "cls", "offset": None, "size": 1}]},
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_table_that_cannot_be_is_named_and_made_again(
    tmp_path: Path, make_tar, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    path = make_tar(tmp_path / "s.tar", [("a.jpg", b"x"), ("a.cls", b"3"), ("b.jpg", b"y")])
    beside, whole = Path(sidecar(str(path)) or ""), scan(str(path))
    rows = whole.table.to_pylist()
    rows[1] |= IMPOSSIBLE[name]
    Members(pa.Table.from_pylist(rows, schema=whole.table.schema), whole.shard_bytes).save(str(beside))
    found, scanned = load_or_scan(str(path), whole.shard_bytes)
    assert found.table.equals(whole.table)
    assert scanned
    assert f"{beside}: damaged" in caplog.text
    assert Members.load(str(beside)).table.equals(whole.table), "it was made again"


def test_a_table_that_holds_fewer_samples_than_the_index_says_is_made_again(tmp_path: Path, make_tar) -> None:
    path = make_tar(tmp_path / "s.tar", [("a.jpg", b"x"), ("b.jpg", b"y")])
    corpus = open_corpus(str(path))
    beside, whole = Path(sidecar(str(path)) or ""), scan(str(path))
    Members(whole.table.slice(0, 0), whole.shard_bytes).save(str(beside))
    assert [sample.key for sample in corpus.read(0, [1])] == ["b"]
    assert len(Members.load(str(beside))) == 2


def test_keys_are_plain_whatever_the_tar_calls_its_members(tmp_path: Path, make_tar) -> None:
    path = make_tar(tmp_path / "s.tar", [("../../up.jpg", b""), ("/abs.jpg", b""), ("e\x1b[2J.jpg", b"")])
    assert scan(str(path)).keys == ["__/__/up", "abs", "e\\x1b[2J"]


def test_a_shard_whose_url_carries_a_query_has_no_sidecar() -> None:
    assert sidecar("https://host/a.tar?sig=1/2") is None
    assert sidecar("s3://b/shard") is None


def test_a_missing_or_damaged_shard_is_named(tmp_path: Path, make_tar) -> None:
    with pytest.raises(ShardError, match=r"no\.tar: cannot be read: .*[Nn]o such file"):
        scan(str(tmp_path / "no.tar"))
    path = make_tar(tmp_path / "cut.tar", [("a.jpg", bytes(5000))])
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ShardError, match=r"cut\.tar: truncated"):
        scan(str(path))
