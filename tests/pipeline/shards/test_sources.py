"""What is packed is told by its bytes, whatever its name says; what cannot be read is refused with what to do."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.shards.opening import open_corpus
from pipeline.shards.sources import open_source


def archive(path: Path, photos: Path, mode: str) -> Path:
    with tarfile.open(path, mode) as made:  # type: ignore[call-overload]
        made.add(photos / "cat", "cat")
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.tar.xz"])
def test_a_tar_is_read_by_its_content_under_any_name_of_a_tar(photos: Path, tmp_path: Path, name: str, mode: str) -> None:
    source = open_source(str(archive(tmp_path / name, photos, mode)))
    (first, body), *_ = source.read(source.files)
    assert len(source.files) == 8
    assert body == (photos / first.path).read_bytes()


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_tar_that_was_cut_off_is_called_so(photos: Path, tmp_path: Path, mode: str) -> None:
    whole = archive(tmp_path / "whole.tar", photos, mode).read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut\.tar\.gz: truncated: its end is missing, .* load it again"):
        open_source(str(tmp_path / "cut.tar.gz"))


@pytest.mark.parametrize(
    ("name", "start", "words"),
    [
        ("a.zip", b"PK\x03\x04", "is a zip archive: unzip it, and pack the folder"),
        ("a.tar", b"PK\x03\x04", "is a zip archive"),
        ("a.tar.zst", b"\x28\xb5\x2f\xfd", "is compressed with zstd: unpack it first"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c", "is a 7z archive"),
        ("a.jpg", b"\xff\xd8\xff", "this is an image; give the folder that holds it"),
        ("a.txt", b"text", "neither a folder nor a tar"),
    ],
)
def test_other_files_are_refused_with_what_to_do(tmp_path: Path, name: str, start: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(start + bytes(2000))
    with pytest.raises(UserError, match=words):
        open_source(str(tmp_path / name))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(UserError, match="neither a folder nor a tar"):
        open_source(str(tmp_path / "a.tar"))


def test_a_photo_in_place_of_shards_is_refused_with_what_makes_some(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "cat" / "000.jpg", tmp_path / "1.JPG")
    with pytest.raises(UserError, match=r"1\.JPG: this is an image, not a shard; .* pseudolabel pack SRC DST"):
        open_corpus(str(tmp_path / "1.JPG"))
