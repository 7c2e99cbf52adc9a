"""Packing from and to buckets and web servers, in few requests and little memory."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import UserError
from pipeline.shards import sources
from pipeline.shards.pack import pack
from pipeline.shards.sources import File
from tests.pipeline.shards.packed import contents, samples


def test_photos_go_from_one_bucket_to_another_place_of_it(photos: Path, tmp_path: Path, bucket: str) -> None:
    for path in photos.glob("*/*"):
        with storage.write_atomic(f"{bucket}/photos/{path.relative_to(photos)}") as file:
            file.write(path.read_bytes())
    pack(f"{bucket}/photos", f"{bucket}/packed", shard_size=20_000)
    pack(str(photos), str(tmp_path / "local"), shard_size=20_000)
    assert {name: storage.read_all(f"{bucket}/packed/{name}") for name in storage.names(f"{bucket}/packed")} == contents(
        tmp_path / "local"
    )
    assert samples(f"{bucket}/packed") == samples(tmp_path / "local")
    with pytest.raises(UserError, match="is not empty"):
        pack(str(photos), f"{bucket}/packed")


@pytest.mark.parametrize("ranges", [True, False], ids=["with ranges", "without ranges"])
def test_a_tar_on_a_web_server_is_packed_in_few_requests(photos: Path, tmp_path: Path, serve, make_tar, ranges: bool) -> None:
    named = [(str(path.relative_to(photos)), path.read_bytes()) for path in sorted(photos.glob("*/*"))]
    make_tar(tmp_path / "web" / "photos.tar", named)
    log: list[str] = []
    pack(serve(tmp_path / "web", ranges=ranges, log=log) + "/photos.tar", str(tmp_path / "out"))
    assert len(log) < 10
    pack(str(photos), str(tmp_path / "local"))
    assert contents(tmp_path / "out") == contents(tmp_path / "local")


def test_an_unsorted_tar_on_a_web_server_is_packed_in_sorted_order(photos: Path, tmp_path: Path, serve, make_tar) -> None:
    named = [(str(path.relative_to(photos)), path.read_bytes()) for path in sorted(photos.glob("*/*"), reverse=True)]
    make_tar(tmp_path / "web" / "photos.tar", named)
    pack(serve(tmp_path / "web") + "/photos.tar", str(tmp_path / "out"))
    pack(str(photos), str(tmp_path / "local"))
    assert contents(tmp_path / "out") == contents(tmp_path / "local")


@pytest.mark.parametrize("form", ["folder", "tar", "tar.gz"])
def test_a_file_over_the_limit_is_skipped_unread(tmp_path: Path, form: str) -> None:
    """By its size in the listing, or in the header of the tar."""
    folder = tmp_path / "photos" / "cat"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"a" * 100)
    (folder / "b.jpg").write_bytes(b"b" * 101)
    src = folder.parent
    if form != "folder":
        src = tmp_path / f"photos.{form}"
        with tarfile.open(src, "w:gz" if form == "tar.gz" else "w") as archive:
            archive.add(folder, "cat")
    report = pack(str(src), str(tmp_path / "out"), max_bytes=100)
    assert (report.samples, report.skipped) == (1, {"larger than 100 bytes (--max-bytes)": 1})


@given(sizes=st.lists(st.integers(0, 12), max_size=40))
def test_no_more_bytes_wait_than_the_limit_or_one_file(sizes: list[int]) -> None:
    asked = 0

    def read(file: File) -> bytes:
        nonlocal asked
        asked += file.size
        return bytes(file.size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_AHEAD_BYTES", 10)
        patch.setattr(sources, "_READERS", 1)
        taken, files = 0, [File(str(n), size) for n, size in enumerate(sizes)]
        for _, body in sources._ahead(read, files):
            taken += len(body)
            assert asked - taken <= max(10, *sizes)
    assert taken == sum(sizes)
