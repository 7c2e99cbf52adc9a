"""Inspection counts what is there, names what would be quarantined, and finds damage when it decodes everything."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.recipe import parse_recipe
from pipeline.rendering.renderer import Renderer
from pipeline.shards.inspect import Spread, inspect
from pipeline.shards.opening import open_corpus
from pipeline.shards.pack import pack
from tests.pipeline.images.test_unusual import FILES
from tests.pipeline.made_images import good


def encoded(size: tuple[int, int], format: str, mode: str = "RGB", **options) -> bytes:
    """Noise, the same at each call (that of `Image.effect_noise` is another one)."""
    buffer, noise = io.BytesIO(), np.random.default_rng(0).normal(128, 60, size[::-1]).clip(0, 255).astype(np.uint8)
    Image.fromarray(noise).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def test_a_packed_folder_is_described(photos: Path, tmp_path: Path) -> None:
    pack(str(photos), str(tmp_path), shard_size=15_000)
    corpus = open_corpus(str(tmp_path))
    steps: list[tuple[int, int]] = []
    report = inspect(corpus, deep=True, progress=lambda done, total: steps.append((done, total)))
    assert (report.shards, report.samples, report.bytes) == (
        len(corpus.urls),
        24,
        sum(p.stat().st_size for p in tmp_path.glob("*.tar")),
    )
    assert report.formats == {"jpeg": 21, "png": 3}
    assert (report.width, report.height) == (Spread(40, 52, 68), Spread(48, 48, 48))
    assert (report.labels, report.unlabelled) == ({"astronaut": 8, "cat": 8, "coffee": 8}, 0)
    assert (report.quarantine, report.damaged, report.duplicate_keys) == ([], [], 0)
    assert steps[-1] == (report.shards, report.shards)
    assert json.loads(json.dumps(report.as_dict()))["width"] == {"min": 40, "median": 52, "max": 68}


def test_what_would_be_quarantined_is_named_with_shard_key_and_reason(tmp_path: Path, make_tar) -> None:
    jpeg = encoded((64, 64), "JPEG")
    make_tar(
        tmp_path / "s.tar",
        [
            ("good.jpg", jpeg),
            ("text.jpg", b"this is no image, whatever its name says" * 10),
            ("empty.jpg", b""),
            ("headonly.jpg", jpeg[:300]),
            ("caption.txt", b"no image"),
            ("animation.gif", encoded((32, 32), "GIF", "P")),
            ("large.png", encoded((200, 100), "PNG")),
        ],
    )
    report = inspect(open_corpus(str(tmp_path)), max_pixels=10_000)
    assert {row.shard for row in report.quarantine} == {f"{tmp_path}/s.tar"}
    reasons = {row.key: row.reason for row in report.quarantine}
    assert list(reasons) == ["text", "empty", "headonly", "caption", "animation", "large"]
    assert "no image member" in reasons["caption"]
    assert "pixels" in reasons["large"]
    assert (report.samples, report.formats, report.unlabelled) == (7, {"jpeg": 1}, 7)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {"quality": 90}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_only_a_deep_look_finds_a_damaged_body(tmp_path: Path, make_tar, format: str, options: dict) -> None:
    whole = encoded((160, 160), format, **options)
    hole = bytearray(whole)
    middle = len(hole) * 2 // 3
    hole[middle : middle + 60] = bytes(range(100, 160))
    cut = whole[: len(whole) // 2] + (b"\xff\xd9" if format == "JPEG" else b"")
    extension = format.lower()
    make_tar(tmp_path / "s.tar", [(f"good.{extension}", whole), (f"hole.{extension}", bytes(hole)), (f"cut.{extension}", cut)])
    corpus = open_corpus(str(tmp_path))
    report = inspect(corpus, deep=True)
    refused, spoilt = ({row.key: row.reason for row in rows} for rows in (report.quarantine, report.spoilt))
    assert "good" not in refused | spoilt
    assert "cut" in refused | spoilt
    if format in ("JPEG", "PNG"):
        assert "hole" in refused | spoilt
    assert set(refused) >= {row.key for row in inspect(corpus).quarantine}
    assert inspect(corpus).spoilt == []
    if format == "JPEG":
        assert inspect(corpus).quarantine == []
        assert "cut" in spoilt, "runs decode it, as far as it goes"
        assert refused.keys() | spoilt.keys() == {"hole", "cut"}  # some holes cannot be decoded at all


def test_a_deep_look_names_what_a_run_refuses_and_nothing_else(tmp_path: Path, make_tar) -> None:
    random, files = np.random.default_rng(3), {f"good {name}": file for name, file in good().items() if "pixel" not in name}
    files |= {f"odd {name}": file for name, file in FILES.items()}
    for name, file in list(files.items()):
        damaged = bytearray(file)
        for at in random.integers(20, len(file), 6):
            damaged[at] ^= 0xFF
        files[f"damaged {name}"] = bytes(damaged)
    members = [(f"{n:03d}.jpg", file) for n, file in enumerate(files.values())]
    make_tar(tmp_path / "s.tar", members)
    corpus = open_corpus(str(tmp_path))
    report = inspect(corpus, deep=True, max_pixels=10**6)
    recipe = {"name": "r", "seed": 0, "engine": "cpu", "corpus": {"shards": str(tmp_path)}, "tasks": {}}
    whole = {"size": 16, "crop": "random", "scale": [1, 1], "ratio": [0.01, 100], "flip": False, "max_pixels": 10**6}
    run = Renderer(parse_recipe({**recipe, "image": whole}))(corpus.read(0, np.arange(len(files))), 0)
    assert [row.key for row in report.quarantine] == [f"{n:03d}" for n in sorted(run.failures)]
    assert [row.reason for row in report.quarantine] == [run.failures[n] for n in sorted(run.failures)]
    assert 20 < len(run.failures) < len(files)
    assert report.spoilt
    assert not {row.key for row in report.spoilt} & {row.key for row in report.quarantine}
    assert report.formats["tiff, by Pillow"] > 3


@pytest.mark.parametrize(
    ("format", "mode", "options"),
    [
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", {"subsampling": 0}),
        ("PNG", "P", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "I;16", {}),
        ("PNG", "1", {}),
        ("BMP", "RGB", {}),
        ("PPM", "RGB", {}),
        ("TIFF", "RGB", {}),
        ("WEBP", "RGB", {}),
    ],
)
def test_sound_images_of_every_kind_pass_the_deep_look(tmp_path: Path, make_tar, format: str, mode: str, options: dict) -> None:
    make_tar(tmp_path / "s.tar", [("x." + format.lower(), encoded((40, 30), format, mode, **options))])
    report = inspect(open_corpus(str(tmp_path)), deep=True)
    assert report.quarantine == []
    assert (report.width, report.height) == (Spread(40, 40, 40), Spread(30, 30, 30))


def test_a_damaged_shard_is_reported_and_the_rest_is_described(photos: Path, tmp_path: Path) -> None:
    pack(str(photos), str(tmp_path), shard_size=15_000)
    for name in ("index.parquet", "shard-000001.members.parquet"):
        (tmp_path / name).unlink()
    cut = tmp_path / "shard-000001.tar"
    cut.write_bytes(cut.read_bytes()[:5000])
    corpus = open_corpus(str(tmp_path), keep_damaged=True)
    gone = tmp_path / "shard-000000.tar"
    lost = len(corpus.members(0))
    gone.unlink()
    report = inspect(corpus)
    assert [(row.shard, row.reason.split(":")[0]) for row in report.damaged] == [
        (str(gone), "is gone since the corpus was opened"),
        (str(cut), "truncated"),
    ]
    assert report.samples == corpus.samples - lost
    assert sum(report.formats.values()) == report.samples > 0


def test_keys_that_repeat_over_the_corpus_are_named(tmp_path: Path, make_tar) -> None:
    image = encoded((8, 8), "PNG")
    make_tar(tmp_path / "a.tar", [("one.png", image), ("two.png", image)])
    make_tar(tmp_path / "b.tar", [("three.png", image), ("two.png", image)])
    report = inspect(open_corpus(str(tmp_path)))
    assert report.duplicate_keys == 1
    assert [(row.key, row.shards) for row in report.duplicates] == [("two", [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"])]


def test_an_empty_corpus_has_nothing_to_describe(tmp_path: Path, make_tar) -> None:
    make_tar(tmp_path / "a.tar", [])
    report = inspect(open_corpus(str(tmp_path)), deep=True)
    assert (report.samples, report.formats, report.width, report.quarantine) == (0, {}, None, [])
