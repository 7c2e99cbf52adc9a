"""A share of each class is set apart to test with: every photo lies on one side."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.shards.opening import open_corpus
from pipeline.shards.pack import pack
from tests.pipeline.shards.packed import CLASSES, contents, samples


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
