"""A recipe trains on the images that a table beside the corpus keeps, and on no others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from pipeline.shards.pack import pack
from pipeline.streaming.pairs import pairs
from tests.trainers.labelling.conftest import K, rows_of
from trainers.labelling.cluster import cluster
from trainers.pretraining import pretrain
from trainers.running.runs import RunFolder

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def rows(clusters: Path) -> pa.Table:
    """The rows of all its tables."""
    return rows_of(clusters)


def keeping(run_recipe: MakeRecipe, table: Path | str, corpus: dict[str, Any] | None = None, **bounds: Any) -> Recipe:
    """A recipe that keeps the images within the bounds."""
    shards = run_recipe().corpus.shards
    return run_recipe({"corpus": {"shards": shards, "keep": {"table": str(table), **bounds}, **(corpus or {})}})


def seen(recipe: Recipe) -> dict[int, bytes]:
    """Each sample's pixels for rotation, by id."""
    found: dict[int, bytes] = {}
    for columns in pairs(recipe):
        found |= {int(n): pixels.tobytes() for n, pixels in zip(columns["id"], columns["rotation.input"])}
    return found


def test_the_images_within_the_bounds_are_trained_on_with_the_pairs_that_they_had(
    run_recipe: MakeRecipe, clusters: Path, rows: pa.Table
) -> None:
    margin, distance = (rows.column(name).to_numpy() for name in ("margin", "distance"))
    least, most = float(np.quantile(margin, 0.3)), float(np.quantile(distance, 0.8))
    wanted = rows.column("id").to_numpy()[(margin >= least) & (distance <= most)]
    assert 10 < len(wanted) < 60
    found = seen(keeping(run_recipe, clusters, least={"margin": least}, most={"distance": most}))
    assert sorted(found) == sorted(wanted.tolist())
    whole = seen(run_recipe())
    assert all(whole[n] == pixels for n, pixels in found.items())


def test_labels_and_the_part_that_is_kept_go_together(run_recipe: MakeRecipe, clusters: Path, rows: pa.Table) -> None:
    half = float(np.median(rows.column("margin").to_numpy()))
    annotations = {"annotations": {"clusters": str(clusters)}}
    spec = keeping(run_recipe, clusters, annotations, least={"margin": half}).model_dump(mode="json")
    recipe = Recipe.model_validate({**spec, "tasks": {"assigned": {"annotation": "clusters", "classes": K}}})
    found: dict[int, int] = {}
    for columns in pairs(recipe):
        found |= dict(zip(columns["id"].tolist(), columns["assigned.label"].tolist()))
    whole = dict(zip(rows.column("id").to_pylist(), rows.column("label").to_pylist()))
    assert 0 < len(found) < len(whole)
    assert found.items() <= whole.items()


def test_the_part_is_of_a_runs_identity_by_what_the_table_holds(
    run_recipe: MakeRecipe, embedded: Path, clusters: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(clusters, tmp_path / "copy"))
    cluster(str(embedded), K, str(tmp_path / "others"), seed=1)

    def identity(table: Path, least: float) -> str:
        return RunFolder(keeping(run_recipe, table, least={"margin": least})).identity("pretrain")

    assert identity(clusters, 0.0) == identity(copy, 0.0)
    assert len({RunFolder(run_recipe()).identity("pretrain"), *(identity(clusters, bound) for bound in (0.0, 0.1))}) == 3
    assert identity(tmp_path / "others", 0.0) != identity(clusters, 0.0)


def test_what_cannot_be_kept_is_refused_in_words(run_recipe: MakeRecipe, clusters: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"corpus\.keep: no image of .*clusters is within the bounds; widen them"):
        seen(keeping(run_recipe, clusters, least={"margin": 9.0}))
    with pytest.raises(UserError, match="has no column 'confidence'"):
        seen(keeping(run_recipe, clusters, least={"confidence": 0.9}))
    with pytest.raises(UserError, match=r"corpus\.keep: .*none: no finished folder of tables is there"):
        seen(keeping(run_recipe, tmp_path / "none"))


@pytest.mark.parametrize("gone", ["000.jpg", "023.jpg"])
def test_shards_that_were_packed_again_are_refused(
    run_recipe: MakeRecipe, clusters: Path, tiles: Path, tmp_path: Path, gone: str
) -> None:
    photos = Path(shutil.copytree(tiles.parent / "photos", tmp_path / "photos"))
    (photos / "rocket" / gone).unlink()
    pack(str(photos), str(tmp_path / "again"), shard_size=30_000)
    with pytest.raises(UserError, match=r"corpus\.keep: row \d+ of .* tells of another image than row"):
        seen(keeping(run_recipe, clusters, {"shards": str(tmp_path / "again")}))


def test_a_run_trains_what_is_kept(run_recipe: MakeRecipe, local_ray: None, clusters: Path, rows: pa.Table) -> None:
    half = float(np.median(rows.column("margin").to_numpy()))
    kept = int((rows.column("margin").to_numpy() >= half).sum())
    result = pretrain(keeping(run_recipe, clusters, least={"margin": half}))
    assert result["steps"] == 3 * (kept // 16)
