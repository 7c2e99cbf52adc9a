"""Fixtures for rendered corpora: recipes of four tasks on small shards, and the bytes of a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe import Recipe
from tests.folders import bytes_below
from tests.pipeline.shards.conftest import make_tar
from tests.tiles import FOUR_TASKS

__all__ = ["make_tar"]

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def corpus(tiles: Path, tmp_path: Path) -> Path:
    """A copy of the tiles' shards that a test may damage."""
    return Path(shutil.copytree(tiles, tmp_path / "corpus"))


@pytest.fixture
def spec(run_recipe: MakeRecipe, tiles: Path) -> MakeRecipe:
    """`spec(shards=..., sections={...}, format="parquet", ...)`: four tasks; the rest is the section `render`."""

    def make(shards: Path | str | list[str] = tiles, sections: dict[str, Any] | None = None, **render: Any) -> Recipe:
        given = shards if isinstance(shards, list) else str(shards)
        return run_recipe({"corpus": {"shards": given}, "tasks": FOUR_TASKS, "render": render, **(sections or {})})

    return make


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    """`tree(folder)`: the bytes of every file below it, by path."""
    return bytes_below
