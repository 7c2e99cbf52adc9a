"""Packing keeps every image's bytes, and gives every one its own key and label."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.shards.index import Index
from pipeline.shards.members import Members
from pipeline.shards.opening import open_corpus
from pipeline.shards.pack import pack
from pipeline.shards.scanning import scan
from tests.pipeline.shards.packed import CLASSES, contents, samples


def test_every_photo_is_packed_untouched_with_its_folder_as_class(photos: Path, tmp_path: Path) -> None:
    report = pack(str(photos), str(tmp_path / "out"))
    assert (report.shards, report.samples, report.classes, report.skipped) == (1, 24, CLASSES, {})
    assert samples(tmp_path / "out") == {
        path.relative_to(photos).with_suffix("").as_posix(): (path.read_bytes(), CLASSES.index(path.parent.name))
        for path in photos.glob("*/*")
    }
    assert open_corpus(str(tmp_path / "out")).classes == CLASSES


def test_shards_hold_at_most_their_size_and_the_index_describes_them(photos: Path, tmp_path: Path) -> None:
    report = pack(str(photos), str(tmp_path), shard_size=15_000)
    index = Index.load(str(tmp_path))
    shards = sorted(tmp_path.glob("*.tar"))
    assert [path.name for path in shards] == [f"shard-{n:06d}.tar" for n in range(report.shards)]
    assert report.shards > 2
    for path in shards:
        row = index.rows[path.name]
        data = path.read_bytes()
        assert (row.bytes, row.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert len(data) <= 15_000 + 10_240 or row.samples == 1, "the end of a tar is padded to 10,240 bytes"
        scanned, written = scan(str(path)), Members.load(str(path.with_suffix(".members.parquet")))
        assert written.table.equals(scanned.table)
        assert (written.shard_bytes, len(written)) == (len(data), row.samples)
    assert sum(row.samples for row in index.rows.values()) == report.samples == 24
    assert not (tmp_path / "pack.unfinished").exists()


def test_a_sample_larger_than_a_shard_gets_its_own(photos: Path, tmp_path: Path) -> None:
    assert pack(str(photos), str(tmp_path), shard_size=1).shards == 24


def test_the_same_photos_make_the_same_bytes_from_a_folder_and_from_tars(photos: Path, tmp_path: Path, make_tar) -> None:
    files = sorted(path for path in photos.glob("*/*"))
    named = [(f"./{path.relative_to(photos)}", path.read_bytes()) for path in files]
    plain = make_tar(tmp_path / "shuffled.tar", reversed(named))
    sorted_tar = make_tar(tmp_path / "sorted.tar", named)
    zipped = tmp_path / "zipped.tar.gz"
    with tarfile.open(sorted_tar) as source, tarfile.open(zipped, "w:gz") as target:
        for info in source:
            target.addfile(info, source.extractfile(info))
    for name, src in {"1": photos, "2": photos, "3": plain, "4": zipped}.items():
        pack(str(src), str(tmp_path / name), shard_size=20_000)
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3") == contents(tmp_path / "4")


def test_a_compressed_tar_keeps_its_own_order(tmp_path: Path) -> None:
    (tmp_path / "src" / "x").mkdir(parents=True)
    for name in ("b.jpg", "a.jpg"):
        (tmp_path / "src" / "x" / name).write_bytes(name.encode())
    subprocess.run(["tar", "-czf", "s.tgz", "-C", "src", "x/b.jpg", "x/a.jpg"], cwd=tmp_path, check=True)
    pack(str(tmp_path / "s.tgz"), str(tmp_path / "out"))
    assert list(samples(tmp_path / "out").items()) == [("x/b", (b"b.jpg", 0)), ("x/a", (b"a.jpg", 0))]


@pytest.mark.parametrize("options", ["-cf", "-czf"])
def test_links_in_a_tar_are_packed_and_those_that_lead_nowhere_are_named(tmp_path: Path, options: str) -> None:
    (tmp_path / "src" / "x").mkdir(parents=True)
    for name in ("1", "2"):
        (tmp_path / "src" / "x" / f"{name}.jpg").write_bytes(name.encode())
    (tmp_path / "src" / "x" / "3.jpg").hardlink_to(tmp_path / "src" / "x" / "1.jpg")
    (tmp_path / "src" / "x" / "0.jpg").symlink_to("2.jpg")
    (tmp_path / "src" / "x" / "4.jpg").symlink_to("no.jpg")
    subprocess.run(
        ["tar", options, "s.tar.gz" if "z" in options else "s.tar", "--sort=name", "-C", "src", "x"], cwd=tmp_path, check=True
    )
    report = pack(str(tmp_path / ("s.tar.gz" if "z" in options else "s.tar")), str(tmp_path / "out"))
    packed = {key: body for key, (body, _) in samples(tmp_path / "out").items()}
    assert packed == {"x/0": b"2", "x/1": b"1", "x/2": b"2", "x/3": b"1"}
    assert report.skipped == {"link that leads nowhere": 1}


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz"])
def test_of_two_files_of_one_name_in_a_tar_the_last_is_packed_and_that_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").mkdir()
    with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as archive:
        for path, body in (("x/a.jpg", b"first"), ("x/b.jpg", b"other"), ("./x/a.jpg", b"last")):
            info = tarfile.TarInfo(path)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    report = pack(str(tmp_path / name), str(tmp_path / "out"))
    assert {key: body for key, (body, _) in samples(tmp_path / "out").items()} == {"x/a": b"last", "x/b": b"other"}
    assert report.skipped == {"replaced by a later file of the same name in the tar": 1}
    assert (tmp_path / "out" / "skipped.tsv").read_text().endswith("\tx/a.jpg\n")


def test_what_is_no_image_is_skipped_and_counted_in_words(tmp_path: Path) -> None:
    src = tmp_path / "src" / "c"
    src.mkdir(parents=True)
    for name in ("a.JPG", "b.heic", "notes.txt", "more.txt", "README", ".hidden.jpg", "._a.jpg"):
        (src / name).write_bytes(b"x")
    (src / "gone.png").symlink_to("nowhere")
    report = pack(str(tmp_path / "src"), str(tmp_path / "out"))
    assert set(samples(tmp_path / "out")) == {"c/a", "c/b"}
    assert report.skipped == {
        "not an image by name (.txt)": 2,
        "not an image by name (no extension)": 1,
        "hidden": 2,
        "link that leads nowhere": 1,
    }
    assert report.skipped_files == f"{tmp_path}/out/skipped.tsv"
    assert (tmp_path / "out" / "skipped.tsv").read_text().splitlines() == [
        "hidden\tc/._a.jpg",
        "hidden\tc/.hidden.jpg",
        "link that leads nowhere\tc/gone.png",
        "not an image by name (.txt)\tc/more.txt",
        "not an image by name (.txt)\tc/notes.txt",
        "not an image by name (no extension)\tc/README",
    ]
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as archive:
        assert archive.getnames() == ["c/a.jpg", "c/a.cls", "c/b.heic", "c/b.cls"]


def test_keys_stay_unique_and_lose_the_dots_of_the_name_only(tmp_path: Path) -> None:
    src = tmp_path / "src" / "v1.0"
    src.mkdir(parents=True)
    for name in ("a.jpg", "a.png", "a.JPG", "x.y.jpg", "x_y.jpg", "a-jpg.jpg"):
        (src / name).write_bytes(name.encode())
    pack(str(tmp_path / "src"), str(tmp_path / "out"))
    assert {key: content.decode() for key, (content, _) in samples(tmp_path / "out").items()} == {
        "v1.0/a": "a.JPG",
        "v1.0/a-jpg": "a-jpg.jpg",
        "v1.0/a-jpg-2": "a.jpg",
        "v1.0/a-png": "a.png",
        "v1.0/x_y": "x.y.jpg",
        "v1.0/x_y-jpg": "x_y.jpg",
    }


NAMES = st.lists(st.text("ab.-2", min_size=1, max_size=5), min_size=1, max_size=3).map("/".join)


@settings(max_examples=40)
@given(names=st.sets(st.tuples(NAMES, st.sampled_from([".jpg", ".png", ".JPG"])).map("".join), min_size=1, max_size=12))
def test_any_names_come_through_with_every_byte(names: set[str], tmp_path_factory: pytest.TempPathFactory, make_tar) -> None:
    root = tmp_path_factory.mktemp("names")
    src = make_tar(root / "src.tar", [(f"top/{name}", name.encode()) for name in sorted(names)])
    visible = sorted(
        name for name in names if not any(part.startswith(".") and part != ".." for part in name.split("/") if part != ".")
    )
    if not visible:
        return
    pack(str(src), str(root / "out"), shard_size=4096)
    corpus = open_corpus(str(root / "out"))
    read = [sample for i in range(len(corpus.urls)) for sample in corpus.read(i, np.arange(corpus.counts[i]))]
    assert sorted(bytes(sample.encoded).decode() for sample in read) == visible
    assert len({sample.key for sample in read}) == len(read)
    assert all(sample.problem is None for sample in read)


def test_long_and_foreign_names_are_kept(tmp_path: Path) -> None:
    name = "ü" * 100
    (tmp_path / "src" / "猫").mkdir(parents=True)
    (tmp_path / "src" / "猫" / f"{name}.jpg").write_bytes(b"x")
    assert pack(str(tmp_path / "src"), str(tmp_path / "out")).classes == ["猫"]
    assert samples(tmp_path / "out") == {f"猫/{name}": (b"x", 0)}
    assert scan(str(tmp_path / "out" / "shard-000000.tar")).keys == [f"猫/{name}"]


def test_without_labels_any_folder_will_do(photos: Path, tmp_path: Path) -> None:
    report = pack(str(photos / "cat"), str(tmp_path / "out"), labels="none")
    assert report.classes is None
    assert {label for _, label in samples(tmp_path / "out").values()} == {-1}
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as archive:
        assert not any(name.endswith(".cls") for name in archive.getnames())
    with pytest.raises(UserError, match=r"000\.jpg lies in no class folder"):
        pack(str(photos / "cat"), str(tmp_path / "labelled"))
    assert not (tmp_path / "labelled").exists()


@pytest.mark.parametrize("form", ["folder", "tar", "tar.gz"])
def test_files_named_alike_up_to_their_first_dot_are_frames_of_a_clip(tmp_path: Path, form: str) -> None:
    names = ["walk/a.10.jpg", "walk/a.2.JPG", "walk/b.frame0.png", "run/a.0.jpg", "run/lone.jpg", "run/c.d/e.1.jpg"]
    for name in names:
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    src = tmp_path / "src"
    if form != "folder":
        src = tmp_path / f"src.{form}"
        with tarfile.open(src, "w:gz" if form == "tar.gz" else "w") as archive:
            for name in names:
                archive.add(tmp_path / "src" / name, name)
    report = pack(str(src), str(tmp_path / "out"), clips=True)
    assert (report.samples, report.classes) == (5, ["run", "walk"])
    corpus = open_corpus(str(tmp_path / "out"))
    found = {sample.key: {ext: bytes(data) for ext, data in parts.items()} for sample, parts in corpus.read_members(0, range(5))}
    assert found["walk/a"] == {"10.jpg": b"walk/a.10.jpg", "2.jpg": b"walk/a.2.JPG", "cls": b"1"}
    assert {key: set(parts) - {"cls"} for key, parts in found.items() if key != "walk/a"} == {
        "walk/b": {"frame0.png"},
        "run/a": {"0.jpg"},
        "run/lone": {"jpg"},
        "run/c.d/e": {"1.jpg"},
    }
    (clip,) = (sample for sample in open_corpus(str(tmp_path / "out"), frames=2).read(0, range(5)) if sample.problem is None)
    assert [bytes(file) for file in clip.files()] == [b"walk/a.2.JPG", b"walk/a.10.jpg"]


def test_a_clip_whose_frames_lie_apart_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "src.tar.gz", "w:gz") as archive:
        for name in ("a.0.jpg", "b.0.jpg", "a.1.jpg"):
            archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(UserError, match="the frames of a do not lie beside each other"):
        pack(str(tmp_path / "src.tar.gz"), str(tmp_path / "out"), labels="none", clips=True)


def test_progress_ends_at_all_bytes(photos: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    pack(str(photos), str(tmp_path), progress=lambda done, total: steps.append((done, total)))
    total = sum(path.stat().st_size for path in photos.glob("*/*"))
    assert steps[-1] == (total, total)
    assert steps == sorted(steps)
    assert len(steps) == 24
