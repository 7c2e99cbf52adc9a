"""Packing keeps every image's bytes, gives every one its own key and label, and never leaves a half shard."""

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

from pipeline import storage
from pipeline.errors import RunError, UserError
from pipeline.shards import pack as packing
from pipeline.shards import sources
from pipeline.shards.index import Index
from pipeline.shards.members import Members
from pipeline.shards.opening import open_corpus
from pipeline.shards.pack import pack
from pipeline.shards.scanning import scan
from pipeline.shards.sources import File

CLASSES = ["astronaut", "cat", "coffee"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def samples(folder: Path | str) -> dict[str, tuple[bytes, int]]:
    corpus = open_corpus(str(folder))
    read = [sample for i in range(len(corpus.urls)) for sample in corpus.read(i, np.arange(corpus.counts[i]))]
    return {sample.key: (bytes(sample.encoded), sample.label) for sample in read}


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


def test_a_share_of_each_class_is_set_apart_and_every_photo_lies_on_one_side(photos: Path, tmp_path: Path) -> None:
    report = pack(str(photos), str(tmp_path / "out"), test=0.2)
    assert report.test is not None
    assert (report.samples, report.test.samples, report.test.classes) == (18, 6, CLASSES)
    train, test = samples(tmp_path / "out/train"), samples(tmp_path / "out/test")
    assert (report.folder, report.test.folder) == (str(tmp_path / "out/train"), str(tmp_path / "out/test"))
    pack(str(photos), str(tmp_path / "all"))
    assert {**train, **test} == samples(tmp_path / "all")
    assert not train.keys() & test.keys()
    assert [sum(label == number for _, label in test.values()) for number in range(3)] == [2, 2, 2]
    assert open_corpus(str(tmp_path / "out/test")).classes == CLASSES
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as archive:
        archive.add(photos, arcname=".")
    again = pack(str(tmp_path / "photos.tar.gz"), str(tmp_path / "tar"), test=0.2)
    assert again.test is not None
    assert samples(again.test.folder) == test


def test_of_a_class_of_few_photos_one_stays_to_train_with(tmp_path: Path) -> None:
    for name in ("many/a", "many/b", "few/c"):
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / f"{name}.jpg").write_bytes(name.encode())
    report = pack(str(tmp_path / "src"), str(tmp_path / "out"), test=0.9)
    assert report.test is not None
    assert [label for _, label in samples(report.test.folder).values()] == [1]
    assert "few/c" in samples(report.folder)
    (tmp_path / "src/many/a.jpg").unlink()
    with pytest.raises(UserError, match="no class has two images"):
        pack(str(tmp_path / "src"), str(tmp_path / "none"), test=0.5)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_a_share_that_sets_nothing_or_everything_apart_is_refused(photos: Path, tmp_path: Path, share: float) -> None:
    with pytest.raises(UserError, match=r"above 0 and below 1"):
        pack(str(photos), str(tmp_path / "out"), test=share)


def test_an_interrupted_pack_of_two_sides_starts_over(photos: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(str(photos), str(tmp_path / "out"), progress=interrupt, test=0.2)
    pack(str(photos), str(tmp_path / "out"), test=0.2)
    pack(str(photos), str(tmp_path / "calm"), test=0.2)
    for side in ("train", "test"):
        assert contents(tmp_path / "out" / side) == contents(tmp_path / "calm" / side)


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
