"""A corpus opens on any storage with or without an index, and gives every sample's own bytes."""

from __future__ import annotations

import os
import pickle
import subprocess
from math import ceil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.draws import sample_id
from pipeline.errors import ShardError, UserError
from pipeline.shards.corpus import Corpus
from pipeline.shards.index import SCHEMA, Index, Row, save_table
from pipeline.shards.label_share import select_share
from pipeline.shards.opening import open_corpus
from pipeline.storage import write_atomic


def body(key: str) -> bytes:
    return key.encode() * (40 + sample_id(key) % 60)


@pytest.fixture
def shards(tmp_path: Path, make_tar) -> Path:
    """Three shards of 5, 0 and 9 samples; labels 0, 1, 2 in turn."""
    for name, count in (("a", 5), ("b", 0), ("c", 9)):
        members = [
            member
            for n in range(count)
            for member in (
                (f"{name}/{n}.jpg", body(f"{name}/{n}")),
                (f"{name}/{n}.json", b"{}"),
                (f"{name}/{n}.cls", str(n % 3).encode()),
            )
        ]
        make_tar(tmp_path / "corpus" / f"{name}.tar", members)
    return tmp_path / "corpus"


def everything(corpus: Corpus) -> dict[str, bytes]:
    read = [sample for i in range(len(corpus.urls)) for sample in corpus.read(i, np.arange(corpus.counts[i]))]
    return {sample.key: bytes(sample.encoded) for sample in read}


EXPECTED = {key: body(key) for key in [*(f"a/{n}" for n in range(5)), *(f"c/{n}" for n in range(9))]}


def test_shards_without_index_are_scanned_once_and_their_index_is_written(shards: Path) -> None:
    steps: list[tuple[int, int]] = []
    corpus = open_corpus(str(shards), progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert corpus.counts.tolist() == [5, 0, 9]
    assert corpus.counts.dtype == np.int64
    assert corpus.samples == 14
    assert sorted(path.name for path in shards.glob("*.parquet")) == [
        "a.members.parquet",
        "b.members.parquet",
        "c.members.parquet",
        "index.parquet",
    ]
    assert everything(corpus) == EXPECTED
    again = open_corpus(str(shards), progress=lambda done, total: pytest.fail("scanned again"))
    assert everything(again) == EXPECTED


def test_samples_carry_key_id_label_and_extension_in_the_order_asked(shards: Path) -> None:
    samples = open_corpus(str(shards)).read(2, np.array([7, 0, 7]))
    assert [sample.key for sample in samples] == ["c/7", "c/0", "c/7"]
    assert [sample.id for sample in samples] == [sample_id("c/7"), sample_id("c/0"), sample_id("c/7")]
    assert [(sample.label, sample.ext, sample.problem) for sample in samples] == [
        (1, "jpg", None),
        (0, "jpg", None),
        (1, "jpg", None),
    ]


def test_a_sample_with_a_problem_keeps_its_place(tmp_path: Path, make_tar) -> None:
    make_tar(tmp_path / "s.tar", [("a.jpg", b"a"), ("b.txt", b"b"), ("c.jpg", b"c")])
    samples = open_corpus(str(tmp_path / "s.tar")).read(0, np.arange(3))
    assert [bytes(sample.encoded) for sample in samples] == [b"a", b"", b"c"]
    assert [sample.problem for sample in samples] == [None, "no image member (there are: txt)", None]
    assert [sample.label for sample in samples] == [-1, -1, -1]


@settings(max_examples=30)
@given(data=st.data())
def test_any_rows_give_their_own_bytes_however_far_apart(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, make_tar
) -> None:
    sizes = data.draw(st.lists(st.sampled_from([0, 10, 3000, 70_000, 200_000]), min_size=1, max_size=8))
    rows = data.draw(st.lists(st.integers(0, len(sizes) - 1), max_size=12))
    bodies = [bytes([n]) * size for n, size in enumerate(sizes)]
    path = make_tar(tmp_path_factory.mktemp("s") / "s.tar", [(f"{n}.jpg", content) for n, content in enumerate(bodies)])
    samples = open_corpus(str(path)).read(0, np.array(rows, np.int64))
    assert [bytes(sample.encoded) for sample in samples] == [bodies[row] for row in rows]


def test_neighbours_are_read_in_one_request(shards: Path, serve) -> None:
    log: list[str] = []
    corpus = open_corpus(serve(shards, log=log) + "/{a,b,c}.tar")
    corpus.members(2)
    log.clear()
    assert len(corpus.read(2, np.arange(9))) == 9
    assert len(log) == 1


def test_nothing_is_written_where_that_is_not_wanted_or_not_possible(
    shards: Path, serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert everything(open_corpus(str(shards), index=False)) == EXPECTED
    assert everything(open_corpus(serve(shards) + "/{a,b,c}.tar")) == EXPECTED
    assert list(shards.glob("*.parquet")) == []

    def refuse(url: str) -> None:
        raise PermissionError(f"{url}: read-only")

    monkeypatch.setattr("pipeline.shards.members.write_atomic", refuse)
    assert everything(open_corpus(str(shards))) == EXPECTED
    assert "kept in memory only" in caplog.text


def test_an_index_over_http_saves_the_scan(shards: Path, serve) -> None:
    open_corpus(str(shards))
    corpus = open_corpus(serve(shards) + "/{a,b,c}.tar", progress=lambda done, total: pytest.fail("scanned"))
    assert everything(corpus) == EXPECTED


def test_s3_shards_open_index_and_read(shards: Path, bucket: str) -> None:
    for path in shards.glob("*.tar"):
        with write_atomic(f"{bucket}/deep/{path.name}") as file:
            file.write(path.read_bytes())
    assert everything(open_corpus(f"{bucket}/deep/")) == EXPECTED
    again = open_corpus(f"{bucket}/deep/*.tar", progress=lambda done, total: pytest.fail("scanned again"))
    assert everything(again) == EXPECTED


def test_a_stale_row_is_scanned_again_and_the_others_are_not(shards: Path, make_tar) -> None:
    open_corpus(str(shards))
    make_tar(shards / "b.tar", [(f"b/{n}.jpg", bytes(9000)) for n in range(3)])
    steps: list[tuple[int, int]] = []
    corpus = open_corpus(str(shards), progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 1)]
    assert corpus.counts.tolist() == [5, 3, 9]
    assert Index.load(str(shards)).rows["b.tar"].samples == 3


def test_opening_some_shards_keeps_what_the_index_says_of_the_others(shards: Path) -> None:
    open_corpus(str(shards / "a.tar"))
    assert set(Index.load(str(shards)).rows) == {"a.tar"}
    open_corpus([str(shards / "c.tar")])
    assert set(Index.load(str(shards)).rows) == {"a.tar", "c.tar"}


def test_another_tools_index_parquet_is_left_alone(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    pq.write_table(pa.table({"x": [1]}), shards / "index.parquet")
    before = (shards / "index.parquet").read_bytes()
    assert open_corpus(str(shards)).samples == 14
    assert (shards / "index.parquet").read_bytes() == before
    assert "left alone" in caplog.text


@pytest.mark.parametrize("wrong", [{"samples": None}, {"samples": -1}, {"samples": 10**12}, {"bytes": None}, {"shard": None}])
def test_an_index_whose_rows_cannot_be_is_named_and_made_again(
    shards: Path, caplog: pytest.LogCaptureFixture, wrong: dict[str, int | None]
) -> None:
    open_corpus(str(shards))
    path, classes = shards / "index.parquet", ["cat", "dog"]
    rows = pq.read_table(path).to_pylist()
    rows[1 if "shard" not in wrong else 0] |= wrong  # nulls come last where a table is sorted
    save_table(pa.Table.from_pylist(rows, schema=SCHEMA), classes, str(shards))
    corpus = open_corpus(str(shards))
    assert (corpus.counts.tolist(), corpus.classes) == ([5, 0, 9], classes)
    assert f"{path}: damaged" in caplog.text
    again = Index.load(str(shards))
    assert ([row.samples for row in again.rows.values()], again.classes) == ([5, 0, 9], classes)


@pytest.mark.parametrize("classes", ["5", '{"a": 1}', '["a", 7]', "[", "[" * 100_000])
def test_classes_that_are_no_names_are_said_and_left_alone(shards: Path, caplog: pytest.LogCaptureFixture, classes: str) -> None:
    """Only the index holds the names, so its owner must decide what happens to it."""
    open_corpus(str(shards))
    path = shards / "index.parquet"
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"classes": classes.encode()}), path)
    before = path.read_bytes()
    corpus = open_corpus(str(shards))
    assert (corpus.counts.tolist(), corpus.classes) == ([5, 0, 9], None)
    assert f"{path}: damaged: its classes are no list of names; it is left alone" in caplog.text
    assert path.read_bytes() == before


def test_what_an_interrupted_pack_left_is_refused(shards: Path) -> None:
    (shards / "pack.unfinished").touch()
    with pytest.raises(UserError, match="unfinished pack"):
        open_corpus(str(shards))


def test_damaged_shards_stop_the_opening_or_are_kept_with_their_reason(shards: Path) -> None:
    for name in ("a", "c"):
        path = shards / f"{name}.tar"
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ShardError, match=r"a\.tar: truncated.* \(and 1 more damaged of 3 shards\)"):
        open_corpus(str(shards))
    corpus = open_corpus(str(shards), keep_damaged=True)
    assert list(corpus.damaged) == [0, 2]
    assert corpus.samples == 0
    with pytest.raises(ShardError, match="truncated"):
        corpus.read(0, np.array([0]))


def test_empty_files_and_links_that_lead_nowhere_are_damaged_shards(shards: Path) -> None:
    (shards / "a.tar").write_bytes(b"")
    (shards / "d.tar").symlink_to("nowhere.tar")
    with pytest.raises(ShardError, match=r"a\.tar: is empty: 0 bytes.* \(and 1 more damaged of 4 shards\)"):
        open_corpus(str(shards))
    corpus = open_corpus(str(shards), keep_damaged=True)
    assert (list(corpus.damaged), corpus.samples) == ([0, 3], 9)
    assert "cannot be read" in corpus.damaged[3]
    rows = Index.load(str(shards)).rows
    Index(rows | {"a.tar": Row(0, 0)}).save(str(shards))
    assert list(open_corpus(str(shards), keep_damaged=True).damaged) == [0, 3], "whatever an index says"


def test_archives_that_are_passed_over_are_named(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_corpus(str(shards))
    assert caplog.text == ""
    for name in ("d.tar.gz", "e.TGZ", "notes.txt"):
        (shards / name).write_bytes(b"x")
    assert open_corpus(str(shards)).samples == 14
    assert "2 compressed archives beside the shards are not part of the corpus, such as d.tar.gz" in caplog.text


def test_a_link_in_a_shard_is_the_file_that_it_stands_for(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "1.jpg").write_bytes(b"one")
    (tmp_path / "src" / "2.jpg").hardlink_to(tmp_path / "src" / "1.jpg")
    (tmp_path / "src" / "3.jpg").symlink_to("1.jpg")
    (tmp_path / "src" / "4.jpg").symlink_to("no.jpg")
    subprocess.run(["tar", "-cf", "s.tar", "-C", "src", *(f"{n}.jpg" for n in range(1, 5))], cwd=tmp_path, check=True)
    samples = open_corpus(str(tmp_path / "s.tar")).read(0, np.arange(4))
    assert [bytes(sample.encoded) for sample in samples] == [b"one", b"one", b"one", b""]
    assert [sample.problem for sample in samples] == [None] * 3 + ["its jpg is a link to a file that the shard does not hold"]


def test_a_shard_that_vanished_or_shrank_is_said_so_when_read(shards: Path) -> None:
    corpus = open_corpus(str(shards))
    whole = (shards / "c.tar").read_bytes()
    (shards / "c.tar").write_bytes(whole[:3000])
    with pytest.raises(ShardError, match=r"c\.tar: has 3000 bytes, \d+ by its index"):
        corpus.read(2, np.array([8]))
    (shards / "a.tar").unlink()
    with pytest.raises(ShardError, match=r"a\.tar: is gone since the corpus was opened"):
        corpus.read(0, np.array([0]))


def test_a_corpus_of_many_shards_is_small_to_send() -> None:
    n = 100_000
    urls = [f"s3://some-bucket/a/longer/folder/shard-{i:06d}.tar" for i in range(n)]
    corpus = Corpus(urls, np.full(n, 2**28), np.full(n, 2500))
    sent = pickle.dumps(corpus)
    assert len(sent) < 8e6
    assert pickle.loads(sent).samples == 250_000_000  # noqa: S301 - our own bytes


def test_a_view_reads_only_its_rows_and_views_compose(shards: Path) -> None:
    corpus = open_corpus(str(shards))
    view = corpus.select([np.array([4, 1]), np.array([], np.int64), np.array([0, 2, 8])])
    assert view.counts.tolist() == [2, 0, 3]
    assert view.members(0).keys == ["a/4", "a/1"]
    assert view.labels(2).tolist() == [0, 2, 2]
    assert [sample.key for sample in view.read(2, np.array([2, 0]))] == ["c/8", "c/0"]
    inner = view.select([np.array([1]), np.array([], np.int64), np.array([1, 2])])
    assert set(everything(pickle.loads(pickle.dumps(inner)))) == {"a/1", "c/2", "c/8"}  # noqa: S301 - our own bytes


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 1.0])
def test_a_share_of_labels_takes_the_same_part_of_each_class(shards: Path, share: float) -> None:
    corpus = open_corpus(str(shards))
    labels = np.concatenate([corpus.labels(i) for i in range(3)])
    view = select_share(corpus, share, seed=3)
    taken = np.concatenate([view.labels(i) for i in range(3)])
    assert [int((taken == c).sum()) for c in range(3)] == [ceil(share * int((labels == c).sum())) for c in range(3)]
    assert all(
        sample.label == n % 3 for i in (0, 2) for sample in view.read(i, np.arange(view.counts[i])) for n in [int(sample.key[2:])]
    )


def test_a_share_is_not_rounded_up_by_binary_fractions(tmp_path: Path, make_tar) -> None:
    make_tar(tmp_path / "s.tar", [member for n in range(100) for member in ((f"{n}.jpg", b""), (f"{n}.cls", b"0"))])
    assert 0.07 * 100 > 7
    assert select_share(open_corpus(str(tmp_path)), 0.07, 0).samples == 7


def test_a_share_depends_on_seed_and_keys_not_on_the_order_of_shards(shards: Path) -> None:
    def keys(seed: int, share: float, order: str) -> set[str]:
        return set(everything(select_share(open_corpus([f"{shards}/{name}.tar" for name in order]), share, seed)))

    assert keys(1, 0.4, "abc") == keys(1, 0.4, "cab")
    assert keys(1, 0.2, "abc") < keys(1, 0.6, "abc")
    assert len({frozenset(keys(seed, 0.2, "abc")) for seed in range(6)}) > 1


def test_unlabelled_samples_are_shared_out_as_a_class_of_their_own(tmp_path: Path, make_tar) -> None:
    labels = [0, None, 1, None] * 5
    members = [(f"{n}.jpg", b"") for n in range(20)] + [(f"{n}.cls", b"%d" % c) for n, c in enumerate(labels) if c is not None]
    make_tar(tmp_path / "s.tar", sorted(members))
    view = select_share(open_corpus(str(tmp_path)), 0.4, 0)
    assert sorted(view.labels(0).tolist()) == [-1] * 4 + [0] * 2 + [1] * 2


def test_folders_with_different_classes_make_no_labels(shards: Path, tmp_path: Path) -> None:
    for folder, classes in ((shards, ["x", "y", "z"]), (tmp_path / "other", ["p", "q"])):
        folder.mkdir(exist_ok=True)
        if folder != shards:
            os.link(shards / "a.tar", folder / "d.tar")
        Index(classes=classes).save(str(folder))
    assert open_corpus(str(shards)).classes == ["x", "y", "z"]
    both = open_corpus([str(shards), str(tmp_path / "other")])
    assert both.classes is None
    assert both.labels(0).tolist() == [-1] * 5
    assert both.read(0, np.array([1]))[0].label == -1
    with pytest.raises(UserError, match="2 different lists of classes"):
        select_share(both, 0.5, 0)


@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=6), data=st.data())
def test_numbers_of_samples_are_rows_of_shards(counts: list[int], data: st.DataObject) -> None:
    places = [(shard, row) for shard, count in enumerate(counts) for row in range(count)]
    numbers = sorted(data.draw(st.sets(st.integers(0, len(places) - 1)))) if places else []
    corpus = Corpus([f"{n}.tar" for n in range(len(counts))], np.ones(len(counts), np.int64), np.array(counts, np.int64))
    rows = corpus.rows_of(np.array(numbers, np.int64))
    assert [(shard, row) for shard, own in enumerate(rows) for row in own.tolist()] == [places[number] for number in numbers]
