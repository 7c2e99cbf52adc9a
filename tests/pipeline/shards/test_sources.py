"""The kind of a source is recognised by its bytes, not its name; a source that cannot be read is refused with what to do."""

from __future__ import annotations

import errno
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from cluster.jobs.command_result import result_url
from pipeline.errors import RunError, UserError
from pipeline.shards.opening import open_corpus
from pipeline.shards.pack import pack
from pipeline.shards.sources import open_images


def archive(path: Path, photos: Path, mode: str) -> Path:
    with tarfile.open(path, mode) as made:  # type: ignore[call-overload]
        made.add(photos / "cat", "cat")
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.tar.xz"])
def test_a_tar_is_read_by_its_content_under_any_name_of_a_tar(photos: Path, tmp_path: Path, name: str, mode: str) -> None:
    source = open_images(str(archive(tmp_path / name, photos, mode)))
    (first, body), *_ = source.read(source.files)
    assert len(source.files) == 8
    assert body == (photos / first.path).read_bytes()


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_tar_that_was_cut_off_is_called_so(photos: Path, tmp_path: Path, mode: str) -> None:
    whole = archive(tmp_path / "whole.tar", photos, mode).read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut\.tar\.gz: truncated: its end is missing, .* load it again"):
        open_images(str(tmp_path / "cut.tar.gz"))


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
        open_images(str(tmp_path / name))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(UserError, match="neither a folder nor a tar"):
        open_images(str(tmp_path / "a.tar"))


def test_a_photo_in_place_of_shards_is_refused_with_what_makes_some(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "cat" / "000.jpg", tmp_path / "1.JPG")
    with pytest.raises(UserError, match=r"1\.JPG: this is an image, not a shard; .* pseudolabel pack SRC DST"):
        open_corpus(str(tmp_path / "1.JPG"))


def test_what_is_no_plain_file_is_left_out_and_said(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "src")
    os.mkfifo(tmp_path / "src" / "cat" / "pipe.jpg")
    os.symlink("pipe.jpg", tmp_path / "src" / "cat" / "link to a pipe.jpg")
    os.symlink("nowhere", tmp_path / "src" / "cat" / "link.jpg")
    report = pack(str(tmp_path / "src"), str(tmp_path / "out"))
    assert report.samples == 24
    assert report.skipped == {"no plain file (a pipe, a socket or a device)": 2, "link that leads nowhere": 1}


def test_a_pipe_in_place_of_a_shard_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(UserError, match="a pipe, a socket or a device"):
        open_corpus(str(tmp_path / "a.tar"))


@pytest.mark.parametrize("name", ["what?", "a b#c%20d é [x]", "{a,b}", "a?b=c"])
def test_nothing_is_written_outside_the_destination_whatever_its_name(
    photos: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    report = pack(str(photos), str(tmp_path / name))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["here", name])
    assert not list((tmp_path / "here").iterdir())
    assert {path.name for path in (tmp_path / name).iterdir()} == {
        "index.parquet",
        "shard-000000.tar",
        "shard-000000.members.parquet",
    }
    assert open_corpus(str(tmp_path / name)).classes == report.classes
    assert result_url(str(tmp_path / name), "pack") == f"{tmp_path}/{name}.pack.result.json"


def test_a_url_with_a_query_is_refused_as_a_folder_to_write(photos: Path) -> None:
    with pytest.raises(UserError, match="a URL with a query is no folder"):
        pack(str(photos), "memory://bucket/out?version=2")


def test_a_full_disk_is_told_without_numbers_of_errors(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def full(file: int) -> None:
        if Path(f"/proc/self/fd/{file}").readlink().name.startswith(".shard"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"out stopped: No space left on device; put that right and run the same again") as stopped:
        pack(str(photos), str(tmp_path / "out"))
    assert "Errno" not in str(stopped.value)
