"""What cannot be packed is refused, and what was interrupted starts over; no half shard is left."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from pipeline.errors import RunError, UserError
from pipeline.shards import pack as packing
from pipeline.shards.opening import open_corpus
from pipeline.shards.pack import pack
from pipeline.shards.scanning import scan
from tests.pipeline.shards.packed import contents


@pytest.mark.parametrize(
    ("src", "words"),
    [
        ("nothing", "no such file or folder"),
        ("nothing.tar", "no such file or folder"),
        ("text", r"holds no images \(1 not an image by name \(\.txt\)\)"),
        ("text/a.txt", "neither a folder nor a tar"),
        ("bad.tar", "not a tar"),
        ("bad.tar.gz", "not a tar"),
        ("bad.tar.xz", "not a tar"),
        ("cut.tar.gz", "truncated: its end is missing"),
    ],
)
def test_a_source_that_cannot_be_packed_is_refused_before_anything_is_written(tmp_path: Path, src: str, words: str) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("x")
    (tmp_path / "bad.tar").write_text("x" * 2000)
    (tmp_path / "bad.tar.gz").write_text("x" * 2000)
    (tmp_path / "bad.tar.xz").write_text("x" * 2000)
    with tarfile.open(tmp_path / "whole.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "text", "text")
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "whole.tar.gz").read_bytes()[:60])
    with pytest.raises(UserError, match=words):
        pack(str(tmp_path / src), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_left_alone(photos: Path, tmp_path: Path) -> None:
    pack(str(photos), str(tmp_path / "out"))
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match="is not empty: it already holds a finished pack"):
        pack(str(photos), str(tmp_path / "out"))
    assert contents(tmp_path / "out") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "shard-000000.tar").write_bytes(b"another tool's")
    with pytest.raises(UserError, match=r"is not empty: it holds shard-000000\.tar"):
        pack(str(photos), str(tmp_path / "mine"))
    assert contents(tmp_path / "mine") == {"shard-000000.tar": b"another tool's"}
    with pytest.raises(UserError, match="is not empty: it holds astronaut"):
        pack(str(photos), str(photos))


def test_an_interrupted_pack_leaves_no_half_shard_and_starts_over(photos: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total * 0.7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(str(photos), str(tmp_path / "out"), shard_size=15_000, progress=interrupt)
    left = [path.name for path in (tmp_path / "out").glob("*.tar")]
    assert left, "some shards were complete"
    assert all(len(scan(str(tmp_path / "out" / name))) for name in left)
    assert not (tmp_path / "out" / "index.parquet").exists()
    with pytest.raises(UserError, match="unfinished pack"):
        open_corpus(str(tmp_path / "out"))
    (tmp_path / "out" / ".shard-000003.tar.0a1b2c3d.tmp").write_bytes(b"what a killed process leaves")
    pack(str(photos), str(tmp_path / "out"))
    pack(str(photos), str(tmp_path / "undisturbed"))
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_a_full_disk_is_a_failed_run_that_can_be_repeated(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(packing.TarWriter, "_write", full)
        with pytest.raises(RunError, match="No space left on device; put that right and run the same again"):
            pack(str(photos), str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["pack.unfinished"]
    assert pack(str(photos), str(tmp_path / "out")).samples == 24
