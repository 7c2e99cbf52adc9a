"""Labelled images for the downstream task, some of them damaged."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from skimage import data

from pipeline.recipe import Recipe
from tests.pipeline.made_images import encode

DAMAGED = b"\xff\xd8\xff\xe0 no more of it"


@pytest.fixture
def labelled(run_recipe: Callable[..., Recipe], tiles: Path) -> Callable[..., Recipe]:
    """`labelled(**downstream)`: the recipe with a downstream section that learns from and tests on the tiles.

    Args: `workers` as in `training`; `sections`, further sections of the recipe; the rest is the section `downstream`.
    """

    def make(workers: int = 1, sections: Mapping[str, Any] | None = None, **downstream: Any) -> Recipe:
        section = {"train": str(tiles), "test": str(tiles), "epochs": 20, "batch": 16, "optimizer": {"lr": 2e-3}, **downstream}
        return run_recipe({"downstream": section, **(sections or {})}, workers=workers)

    return make


@pytest.fixture
def shard(tmp_path: Path) -> Callable[..., str]:
    """`shard(name, labels, damaged=())`: the URL of a shard with one of four photos in turn for each label, some damaged.

    A label is what the `cls` member says, None for no such member.
    """
    photos = (data.astronaut(), data.coffee(), data.chelsea(), data.rocket())
    images = [encode(Image.fromarray(photo[100:140, 100:140]), "JPEG", quality=92) for photo in photos]

    def write(name: str, labels: list[int | str | None], damaged: tuple[int, ...] = ()) -> str:
        path = tmp_path / name / "s.tar"
        path.parent.mkdir()
        with tarfile.open(path, "w") as archive:
            for n, label in enumerate(labels):
                members = {"jpg": DAMAGED if n in damaged else images[n % len(images)]}
                if label is not None:
                    members["cls"] = str(label).encode()
                for ext, body in members.items():
                    member = tarfile.TarInfo(f"{n:03d}.{ext}")
                    member.size = len(body)
                    archive.addfile(member, io.BytesIO(body))
        return str(path)

    return write
