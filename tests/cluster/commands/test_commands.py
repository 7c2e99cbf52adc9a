"""The commands that need no Ray, on real images: pack, inspect, tasks, preview."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline.tasks import registry
from tests.cluster.conftest import Call

Refused = Callable[..., str]


def test_pack_makes_shards_that_inspect_reads_and_says_what_it_skipped(call: Call, photos: Path, tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    for folder in photos.iterdir():
        (source / folder.name).symlink_to(folder)
    (source / "notes.txt").write_text("not an image")
    shards = tmp_path / "shards"
    packed = call("pack", source, shards, "--shard-size", "20kB")
    assert packed.exit_code == 0, packed.output
    assert "1 not an image by name (.txt)" in packed.stdout
    assert "3 classes: astronaut, cat, coffee" in packed.stdout
    tars = sorted(shards.glob("*.tar"))
    assert len(tars) > 1
    assert all(tar.stat().st_size <= 20_000 + 10_240 for tar in tars)  # tars are padded to 10 KiB
    assert "packing: " in packed.stderr

    report = json.loads(call("inspect", shards, "--json").stdout)
    assert (report["samples"], report["shards"]) == (24, len(tars))
    assert report["labels"] == {"astronaut": 8, "cat": 8, "coffee": 8}
    assert report["formats"] == {"jpeg": 21, "png": 3}
    words = call("inspect", *tars).stdout
    assert "24 samples in" in words
    assert "jpeg 21, png 3" in words


def test_pack_without_labels(call: Call, photos: Path, tmp_path: Path) -> None:
    assert call("pack", photos / "cat", tmp_path / "shards", "--labels", "none").exit_code == 0
    assert json.loads(call("inspect", tmp_path / "shards", "--json").stdout)["labels"] == {}


def test_pack_takes_masks_from_their_folder_and_says_what_training_will_refuse(call: Call, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for n, photo in enumerate(sorted((photos / "cat").iterdir())[:3]):
        Image.new(("L", "L", "RGB")[n], Image.open(photo).size, 7 * n).save(tmp_path / f"masks/{photo.stem}.png")
    packed = call("pack", photos / "cat", tmp_path / "shards", "--masks", tmp_path / "masks")
    assert packed.exit_code == 0, packed.output
    for each in ("seg.png of 2 classes: 0, 7", "5 image without a target", "1 image; of the first, its mask has colours (RGB)"):
        assert each in " ".join(packed.stdout.split()), each
    assert json.loads(call("inspect", tmp_path / "shards", "--json").stdout)["quarantine"] == []


def test_pack_refuses_in_words(refused: Refused, photos: Path, tiles: Path, tmp_path: Path) -> None:
    assert "/nowhere: no such file or folder" in refused(2, "pack", "/nowhere", tmp_path / "a")
    assert "is not empty" in refused(2, "pack", photos, tiles)
    assert "cannot be written" in refused(2, "pack", photos, photos / "cat" / "000.jpg" / "shards")
    assert "--shard-size lots: not a size" in refused(2, "pack", photos, tmp_path / "b", "--shard-size", "lots")


def test_inspect_names_what_would_be_quarantined_and_what_is_damaged(call: Call, tiles: Path, tmp_path: Path) -> None:
    photo = next(member for member in _members(next(tiles.glob("*.tar"))) if member[0].endswith(".jpg"))[1]
    with tarfile.open(tmp_path / "good.tar", "w") as tar:
        for name, data in {
            "fine.jpg": photo,
            "words.jpg": b"hello [red]",
            "cut.jpg": photo[: len(photo) // 2] + b"\xff\xd9",
        }.items():
            _add(tar, name, data)
    (tmp_path / "broken.tar").write_bytes((tmp_path / "good.tar").read_bytes()[:700])
    shallow = json.loads(call("inspect", tmp_path, "--json").stdout)
    assert [row["key"] for row in shallow["quarantine"]] == ["words"]
    assert [row["shard"] for row in shallow["damaged"]] == [str(tmp_path / "broken.tar")]
    deep = call("inspect", tmp_path, "--deep")
    assert deep.exit_code == 0
    table = deep.stdout[deep.stdout.index("would be quarantined") :]
    assert all(words in table for words in ("words", "cut", "damaged shards", "broken.tar"))
    found = json.loads(call("inspect", tmp_path, "--deep", "--json").stdout)
    assert [[row["key"] for row in found[name]] for name in ("quarantine", "spoilt")] == [["words"], ["cut"]]


def test_tasks_lists_all_and_explains_each_parameter(call: Call, refused: Refused) -> None:
    overview = call("tasks")
    assert overview.exit_code == 0
    for name, task in registry().items():
        assert name in overview.stdout
        own = " ".join(call("tasks", name).stdout.split())
        assert task.source in own
        for parameter, field in task.model_fields.items():
            assert parameter in own
            default = json.dumps(field.default)
            assert (default if len(default) <= 60 else f"{len(field.default)} values") in own
    assert "int, >= 2, <= 6" in call("tasks", "jigsaw").stdout
    assert "did you mean 'jigsaw'?" in refused(2, "tasks", "jigsw")


def test_preview_writes_a_picture_of_the_recipe_with_its_overrides(call: Call, recipe_file: Path, tmp_path: Path) -> None:
    pictures = {}
    for name, words in {"a": (), "b": (), "epoch": ("--epoch", "1"), "one task": ("--set", "tasks={rotation: {}}")}.items():
        target = tmp_path / f"{name}.png"
        result = call("preview", recipe_file, "-o", target, "--samples", "2", *words)
        assert result.exit_code == 0, result.output
        assert str(target) in result.stdout
        with Image.open(target) as picture:
            assert picture.format == "PNG"
            pictures[name] = (picture.size, picture.tobytes())
    assert pictures["a"] == pictures["b"]
    assert pictures["epoch"] != pictures["a"]
    assert pictures["one task"][0][0] < pictures["a"][0][0]


@pytest.mark.parametrize(("target", "message"), [("sheet.jpg", "ends in .png"), ("missing/sheet.png", "cannot be written")])
def test_preview_refuses_a_target_that_it_cannot_write(
    refused: Refused, recipe_file: Path, tmp_path: Path, target: str, message: str
) -> None:
    assert message in refused(2, "preview", recipe_file, "-o", tmp_path / target)


def test_a_corpus_without_one_decodable_image_is_a_failed_run(refused: Refused, recipe_file: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        _add(tar, "a.jpg", b"no image")
    said = refused(1, "preview", recipe_file, "-o", tmp_path / "x.png", "--set", f"corpus.shards={tmp_path}/bad.tar")
    assert "could be decoded" in said


def _members(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    import io

    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
