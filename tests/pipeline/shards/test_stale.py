"""An index is not used for a shard that is newer: a rewritten shard, even one of the same size, is indexed anew."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import storage
from pipeline.errors import UserError
from pipeline.materialize.run import render
from pipeline.materialize.verify import verify
from pipeline.recipe import parse_recipe
from pipeline.shards.index import SCHEMA, Index, Lookup, Row
from pipeline.shards.members import Members, sidecar
from pipeline.shards.opening import open_corpus
from pipeline.shards.pack import pack
from pipeline.shards.scanning import agrees, scan

Samples = list[tuple[str, int]]
BEFORE: Samples = [(f"k{n}", 0) for n in range(4)]
REWRITTEN = {
    "labels": [(f"k{n}", int(n == 2)) for n in range(4)],
    "order": BEFORE[::-1],
    "names": [(f"m{n}", 0) for n in range(4)],
}


def photo(shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 32), (shade, 90, 20)).save(file, "PNG", compress_level=0)
    return file.getvalue()


def members(samples: Samples, image: bytes) -> list[tuple[str, bytes]]:
    return [member for key, label in samples for member in ((f"{key}.png", image), (f"{key}.cls", b"%d" % label))]


def rewrite(make_tar: Callable[..., Path], path: Path, samples: Samples, image: bytes | None = None) -> None:
    """Put another tar of the same size in a shard's place, and see that the clock has moved on since the index was written."""
    size, written = path.stat().st_size, os.stat(path.parent / "index.parquet").st_ctime_ns
    while not path.exists() or os.stat(path).st_ctime_ns <= written:
        make_tar(path, members(samples, image or photo()))
    assert path.stat().st_size == size


def labels(folder: str) -> list[tuple[str, int]]:
    corpus = open_corpus(folder)
    return [(s.key, s.label) for i, count in enumerate(corpus.counts) for s in corpus.read(i, np.arange(count))]


def no_scan(done: int, total: int) -> None:
    pytest.fail("scanned again")


@pytest.mark.parametrize("how", REWRITTEN)
def test_a_shard_rewritten_in_as_many_bytes_is_indexed_anew(
    how: str, tmp_path: Path, make_tar, caplog: pytest.LogCaptureFixture
) -> None:
    make_tar(tmp_path / "a.tar", members(BEFORE, photo()))
    make_tar(tmp_path / "b.tar", members([("other", 7)], photo()))
    assert labels(str(tmp_path)) == [*BEFORE, ("other", 7)]
    rewrite(make_tar, tmp_path / "a.tar", REWRITTEN[how])
    steps: list[tuple[int, int]] = []
    open_corpus(str(tmp_path), index=False, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 1)]
    assert labels(str(tmp_path)) == [*REWRITTEN[how], ("other", 7)]
    assert "a.tar: was rewritten in as many bytes" in caplog.text
    open_corpus(str(tmp_path), progress=no_scan)


def test_a_folder_packed_again_in_as_many_bytes_is_read_by_its_new_index(tmp_path: Path) -> None:
    """In the same process, as in a notebook; shards and index are both new, so nothing is scanned."""
    (tmp_path / "photos").mkdir()
    sizes: list[int] = []
    for long, short in (("a", "b"), ("b", "a")):
        (tmp_path / f"photos/{long}.jpg").write_bytes(long.encode() * 5000)
        (tmp_path / f"photos/{short}.jpg").write_bytes(short.encode() * 10)
        pack(str(tmp_path / "photos"), str(tmp_path / "out"), labels="none")
        corpus = open_corpus(str(tmp_path / "out"), progress=no_scan)
        sizes += corpus.sizes.tolist()
        assert {s.key: bytes(s.encoded) for s in corpus.read(0, [0, 1])} == {
            long: long.encode() * 5000,
            short: short.encode() * 10,
        }
        shutil.rmtree(tmp_path / "out")
    assert sizes[0] == sizes[1]


def test_a_shard_with_an_old_date_moved_over_another_is_new(tmp_path: Path, make_tar) -> None:
    make_tar(tmp_path / "new" / "a.tar", members(REWRITTEN["labels"], photo()))
    os.utime(tmp_path / "new" / "a.tar", (1e9, 1e9))
    make_tar(tmp_path / "s" / "a.tar", members(BEFORE, photo()))
    assert labels(str(tmp_path / "s")) == BEFORE
    written = os.stat(tmp_path / "s" / "index.parquet").st_ctime_ns
    while os.stat(tmp_path / "new" / "a.tar").st_ctime_ns <= written:
        os.utime(tmp_path / "new" / "a.tar", (1e9, 1e9))
    os.replace(tmp_path / "new" / "a.tar", tmp_path / "s" / "a.tar")
    assert labels(str(tmp_path / "s")) == REWRITTEN["labels"]


def test_a_rewritten_shard_is_found_over_http_by_its_date_and_on_object_storage(tmp_path: Path, make_tar, serve) -> None:
    make_tar(tmp_path / "a.tar", members(BEFORE, photo()))
    assert labels(str(tmp_path)) == BEFORE
    url = serve(tmp_path) + "/a.tar"
    open_corpus(url, progress=no_scan)
    rewrite(make_tar, tmp_path / "a.tar", REWRITTEN["labels"])
    later = os.stat(tmp_path / "index.parquet").st_mtime + 5
    os.utime(tmp_path / "a.tar", (later, later))
    assert labels(url) == REWRITTEN["labels"], "the files beside it are not used by whoever reads, as they cannot be written anew"
    before = make_tar(tmp_path / "x" / "a.tar", members(BEFORE, photo())).read_bytes()
    after = (tmp_path / "a.tar").read_bytes()
    for content, expected in ((before, BEFORE), (after, REWRITTEN["labels"])):
        with storage.write_atomic("memory://stale/a.tar") as file:
            file.write(content)
        assert labels("memory://stale") == expected


def test_an_index_of_an_earlier_version_is_read_and_held_against_the_dates_too(tmp_path: Path, make_tar) -> None:
    path = make_tar(tmp_path / "a.tar", members(BEFORE, photo()))
    found = scan(str(path))
    Members(found.table, found.shard_bytes).save(sidecar(str(path)) or "")
    Index({"a.tar": Row(4, path.stat().st_size)}).save(str(tmp_path))
    assert Lookup.load(str(tmp_path)).file.schema_arrow.equals(SCHEMA), "as it was"
    open_corpus(str(tmp_path), progress=no_scan)
    rewrite(make_tar, path, REWRITTEN["names"])
    assert labels(str(tmp_path)) == REWRITTEN["names"]


def test_a_file_beside_a_shard_that_is_older_than_it_is_not_used(tmp_path: Path, make_tar) -> None:
    make_tar(tmp_path / "a.tar", members(BEFORE, photo()))
    assert labels(str(tmp_path)) == BEFORE
    rewrite(make_tar, tmp_path / "a.tar", REWRITTEN["labels"])
    (tmp_path / "index.parquet").unlink()
    assert labels(str(tmp_path)) == REWRITTEN["labels"]


def test_a_newer_shard_that_is_damaged_leaves_the_index(tmp_path: Path, make_tar) -> None:
    for name in ("a", "b"):
        make_tar(tmp_path / f"{name}.tar", members(BEFORE, photo()))
    open_corpus(str(tmp_path))
    rewrite(make_tar, tmp_path / "b.tar", REWRITTEN["labels"])
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[:200] = b"x" * 200
    (tmp_path / "a.tar").write_bytes(content)
    for _ in range(2):
        assert list(open_corpus(str(tmp_path), keep_damaged=True).damaged) == [0]
    assert set(Index.load(str(tmp_path)).rows) == {"b.tar"}


def test_a_copied_folder_keeps_its_index_and_only_the_ends_of_its_shards_are_compared(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pack(str(photos), str(tmp_path / "packed"), shard_size=1)
    shutil.copytree(tmp_path / "packed", tmp_path / "copy", copy_function=shutil.copyfile)
    index = tmp_path / "copy" / "index.parquet"
    written, before = os.stat(index).st_ctime_ns, {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
    shards = sorted((tmp_path / "copy").glob("*.tar"))
    while min(os.stat(path).st_ctime_ns for path in shards) <= written:
        for path in shards:
            os.utime(path)
    monkeypatch.setattr("pipeline.shards.stale.scan", lambda url: pytest.fail("scanned"))
    assert open_corpus(str(tmp_path / "copy")).samples == 24
    open_corpus(str(tmp_path / "copy"), progress=no_scan)
    assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == before
    assert "rewritten" not in caplog.text


def test_a_few_copied_shards_are_scanned_and_keep_their_checksums(tmp_path: Path, photos: Path) -> None:
    pack(str(photos), str(tmp_path / "packed"))
    rows = Index.load(str(tmp_path / "packed")).rows
    shard = tmp_path / "packed" / "shard-000000.tar"
    while os.stat(shard).st_ctime_ns <= os.stat(tmp_path / "packed" / "index.parquet").st_ctime_ns:
        os.utime(shard)
    steps: list[int] = []
    open_corpus(str(tmp_path / "packed"), progress=lambda done, total: steps.append(done))
    assert steps == [1]
    assert Index.load(str(tmp_path / "packed")).rows == rows
    open_corpus(str(tmp_path / "packed"), progress=no_scan)


def test_the_ends_tell_a_shard_from_another(tmp_path: Path, make_tar) -> None:
    path = make_tar(tmp_path / "a.tar", members(BEFORE, photo()))
    there = scan(str(path))
    assert agrees(str(path), there)
    for samples in ([(key, 1) for key, _ in BEFORE], REWRITTEN["order"], REWRITTEN["names"], BEFORE[1:]):
        make_tar(path, members(samples, photo()))
        assert not agrees(str(path), there)
    long = "ä" * 80 + "/" + "n" * 120
    make_tar(path, members([(long, 0)], photo()))
    assert agrees(str(path), scan(str(path)))


def test_a_rendered_corpus_is_not_taken_for_that_of_a_rewritten_shard(tmp_path: Path, make_tar) -> None:
    shards, out = tmp_path / "s", str(tmp_path / "out")
    make_tar(shards / "a.tar", members(BEFORE, photo()))
    recipe = parse_recipe(
        {
            "name": "r",
            "seed": 0,
            "engine": "cpu",
            "corpus": {"shards": str(shards)},
            "image": {"size": 16},
            "tasks": {"rotation": {}},
        }
    )
    assert render(recipe, out, here=True).rendered == 1
    assert render(recipe, out, here=True).rendered == 0
    rewrite(make_tar, shards / "a.tar", BEFORE, photo(200))
    assert [problem.reason for problem in verify(out, deep=1.0, seed=0).problems] == [
        "the input shard is not the one that was rendered"
    ]
    with pytest.raises(UserError, match="not with the same content"):
        render(recipe, out, here=True)
