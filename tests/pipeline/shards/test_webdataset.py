"""Shards go both ways: what webdataset and img2dataset write is read here, and what is packed here is read by webdataset."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import webdataset

from pipeline.shards.opening import open_corpus
from pipeline.shards.pack import pack


def read_all(shards: str, **options) -> dict[str, tuple[bytes, int]]:
    corpus = open_corpus(shards, **options)
    read = [sample for i in range(len(corpus.urls)) for sample in corpus.read(i, np.arange(corpus.counts[i]))]
    return {sample.key: (bytes(sample.encoded), sample.label) for sample in read}


@pytest.fixture
def jpegs(photos: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(photos.glob("*/*.jpg"))]


def test_shards_of_webdatasets_writer_open_without_an_index(jpegs: list[bytes], tmp_path: Path) -> None:
    with webdataset.ShardWriter(str(tmp_path / "train-%04d.tar"), maxcount=8, verbose=0) as writer:
        for n, jpeg in enumerate(jpegs):
            writer.write({"__key__": f"part/{n:05d}", "jpg": jpeg, "cls": n % 4, "json": {"n": n}})
    expected = {f"part/{n:05d}": (jpeg, n % 4) for n, jpeg in enumerate(jpegs)}
    assert read_all(str(tmp_path)) == expected
    assert read_all(f"{tmp_path}/train-{{0000..0002}}.tar") == expected


def test_several_images_a_sample_are_told_apart_by_extension(jpegs: list[bytes], tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "pairs.tar")) as writer:
        writer.write({"__key__": "a", "left.jpg": jpegs[0], "right.jpg": jpegs[1], "txt": "two views"})
    assert read_all(str(tmp_path))["a"][0] == jpegs[0]
    assert read_all(str(tmp_path), image="right.jpg")["a"][0] == jpegs[1]


def test_shards_laid_out_as_img2datasets_open_without_an_index(jpegs: list[bytes], tmp_path: Path, make_tar) -> None:
    for shard in range(2):
        members = []
        for n, jpeg in enumerate(jpegs[:5]):
            key = f"{shard:05d}{n:04d}"
            members += [(f"{key}.jpg", jpeg), (f"{key}.json", json.dumps({"key": key}).encode()), (f"{key}.txt", b"a caption")]
        make_tar(tmp_path / f"{shard:05d}.tar", members)
        (tmp_path / f"{shard:05d}.parquet").write_bytes(b"its own table")
        (tmp_path / f"{shard:05d}_stats.json").write_text("{}")
    assert read_all(str(tmp_path)) == {f"{shard:05d}{n:04d}": (jpegs[n], -1) for shard in range(2) for n in range(5)}
    assert (tmp_path / "00000.parquet").read_bytes() == b"its own table"


def test_packed_shards_are_read_by_webdataset(photos: Path, tmp_path: Path) -> None:
    report = pack(str(photos), str(tmp_path), shard_size=15_000)
    shards = f"{tmp_path}/shard-{{000000..{report.shards - 1:06d}}}.tar"
    seen = {
        sample["__key__"]: (sample.get("jpg", sample.get("png")), int(sample["cls"]))
        for sample in webdataset.WebDataset(shards, shardshuffle=False)
    }
    assert len(seen) == 24
    assert seen == read_all(str(tmp_path))
