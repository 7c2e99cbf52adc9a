"""Labels in words are refused where labels are learnt from, and only there."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.recipe import parse_recipe
from trainers.downstream.labelled import open_labelled


@pytest.mark.parametrize("side", ["train", "test"])
def test_a_cls_in_words_is_refused_with_the_shard_the_sample_and_what_to_do(tmp_path: Path, side: str) -> None:
    for name in ("train", "test"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            for n, label in enumerate(("0", "1", "cat" if name == side else "1.0")):
                for path, body in ((f"{n}.jpg", b"x"), (f"{n}.cls", label.encode())):
                    info = tarfile.TarInfo(path)
                    info.size = len(body)
                    archive.addfile(info, io.BytesIO(body))
    shards = {name: str(tmp_path / f"{name}.tar") for name in ("train", "test")}
    recipe = parse_recipe({"name": "r", "seed": 0, "engine": "cpu", "corpus": {"shards": shards["train"]}, "downstream": shards})
    with pytest.raises(UserError) as refused:
        open_labelled(recipe)
    assert str(refused.value) == (
        f"downstream.{side}: {shards[side]}: the `cls` of 2 ('cat') is no class number: write numbers from 0 there, or put the "
        "images into a folder per class and pack them: pseudolabel pack SRC DST"
    )
