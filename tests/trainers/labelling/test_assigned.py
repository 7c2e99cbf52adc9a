"""Labels of tables beside a corpus are joined by shard and row, in every way of running, and learnt like drawn ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

from pipeline.errors import UserError
from pipeline.materialize.rendered import RenderedSource, for_training
from pipeline.materialize.run import render
from pipeline.materialize.verify import verify
from pipeline.recipe import Recipe
from pipeline.rendering.renderer import Columns
from pipeline.rendering.units import UnitSource
from pipeline.shards.pack import pack
from pipeline.streaming.batches import batches
from pipeline.streaming.pairs import open_source
from pipeline.streaming.plan import steps
from tests.trainers.arrived import Arrived
from tests.trainers.labelling.conftest import K, joined, labels_in, rows_of
from trainers.labelling.cluster import cluster
from trainers.learning.pretext import PretextModel
from trainers.objectives.classes import ClassesObjective
from trainers.pretraining import backbone_file, pretrain
from trainers.running.runs import RunFolder

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def assigned(run_recipe: MakeRecipe, clusters: Path) -> MakeRecipe:
    """`assigned(corpus={...}, annotation={...}, task={...}, **training)`: a recipe that learns the clusters and rotation."""

    def make(
        corpus: dict[str, Any] | None = None,
        annotation: dict[str, Any] | None = None,
        task: dict[str, Any] | None = None,
        sections: dict[str, Any] | None = None,
        **training: Any,
    ) -> Recipe:
        tasks = {"assigned": {"annotation": "clusters", "classes": K, **(task or {})}, "rotation": {}}
        spec = run_recipe({"tasks": {"rotation": {}}, **(sections or {})}, **training).model_dump(mode="json")
        spec["corpus"] |= {"annotations": {"clusters": {"table": str(clusters), **(annotation or {})}}, **(corpus or {})}
        return Recipe.model_validate({**spec, "tasks": tasks})

    return make


def test_every_image_has_the_label_of_its_row(assigned: MakeRecipe, clusters: Path) -> None:
    rows = rows_of(clusters)
    assert joined(assigned()) == dict(zip(rows.column("id").to_pylist(), rows.column("label").to_pylist()))


def test_images_beyond_a_bound_have_no_label(assigned: MakeRecipe, clusters: Path) -> None:
    rows = rows_of(clusters)
    margin, distance = (rows.column(name).to_numpy() for name in ("margin", "distance"))
    least, most = float(np.median(margin)), float(np.median(distance))
    wanted = np.where((margin >= least) & (distance <= most), rows.column("label").to_numpy(), -1)
    assert 0 < (wanted < 0).sum() < len(wanted)
    bounds = {"least": {"margin": least}, "most": {"distance": most}}
    assert joined(assigned(annotation=bounds)) == dict(zip(rows.column("id").to_pylist(), wanted.tolist()))


@pytest.mark.parametrize("place", ["workers", "trainer"])
def test_labels_travel_with_crops_and_with_files(assigned: MakeRecipe, clusters: Path, place: str) -> None:
    rows = rows_of(clusters)
    recipe = assigned(sections={"engine": "cpu", "placement": {"render": place}})
    source = open_source(recipe)
    found = labels_in(columns for _, columns in steps([source], Arrived(source), 0, 1))
    assert found == dict(zip(rows.column("id").to_pylist(), rows.column("label").to_pylist()))


@pytest.mark.parametrize("place", ["workers", "trainer"])
def test_weights_of_a_column_travel_with_the_labels(assigned: MakeRecipe, clusters: Path, place: str) -> None:
    rows = rows_of(clusters)
    recipe = assigned(annotation={"weight": "distance"}, sections={"engine": "cpu", "placement": {"render": place}})
    source = open_source(recipe)
    found = labels_in((columns for _, columns in steps([source], Arrived(source), 0, 1)), "assigned.weight")
    assert found == dict(zip(rows.column("id").to_pylist(), rows.column("distance").to_pylist()))


@pytest.mark.parametrize("wrong", [-0.5, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(assigned: MakeRecipe, clusters: Path, tmp_path: Path, wrong: float) -> None:
    """Where an image has a label; without one its weight does not matter."""
    copy = Path(shutil.copytree(clusters, tmp_path / "copy"))
    name = pq.read_table(copy / "shards.parquet").column("outputs")[0][0]["name"].as_py()
    table = pq.read_table(copy / name)
    distance = table.column("distance").to_numpy().copy()
    distance[2] = wrong
    margin = pa.array(np.where(np.arange(len(table)) == 2, -1, 1).astype(np.float32))
    changed = table.set_column(table.schema.get_field_index("distance"), "distance", pa.array(distance))
    pq.write_table(changed.set_column(table.schema.get_field_index("margin"), "margin", margin), copy / name)
    given = {"table": str(copy), "weight": "distance"}
    with pytest.raises(UserError, match=rf"distance of row \d+ is {wrong}, and a weight is a number, 0 or above"):
        joined(assigned(annotation=given))
    assert list(joined(assigned(annotation={**given, "least": {"margin": 0}})).values()).count(-1) == 1
    with pytest.raises(UserError, match="has no column 'confidence'"):
        joined(assigned(annotation={"weight": "confidence"}))


@pytest.mark.parametrize("render_section", [{"epochs": 2}, {"format": "parquet"}], ids=["tar", "parquet"])
def test_rendered_labels_and_weights_are_those_of_the_stream(
    assigned: MakeRecipe, run_recipe: MakeRecipe, clusters: Path, tmp_path: Path, render_section: dict[str, Any]
) -> None:
    """Of the part of the corpus that is kept; the corpus itself and its tables are not needed any more."""
    margin = rows_of(clusters).column("margin").to_numpy()
    keep = {"table": str(clusters), "least": {"margin": float(np.quantile(margin, 0.3))}}
    named = {"weight": "distance", "least": {"margin": float(np.quantile(margin, 0.6))}}
    recipe = assigned({"keep": keep}, named, sections={"render": render_section})
    render(recipe, str(tmp_path / "out"), here=True)
    assert verify(str(tmp_path / "out"), deep=1.0).problems == []
    own, rendered = for_training(run_recipe({"corpus": {"shards": str(tmp_path / "out")}, "image": {}, "tasks": {}}))
    assert rendered is not None
    live = open_source(recipe)
    there = RenderedSource(own, rendered.corpus(), live.schedule, rendered=rendered)

    def made(source: UnitSource) -> list[Columns]:
        make = source.maker(1, lambda stage, unit: None)
        return [columns for _, columns in batches(source.schedule, 0, 0, 1, map(make, range(source.schedule.units())))]

    seen = 0
    for wanted, found in zip(made(live), made(there), strict=True):
        good = wanted["weight"] > 0
        np.testing.assert_array_equal(found["weight"], wanted["weight"])
        for name in ("id", "class", "assigned.label", "assigned.weight", "assigned.input", "rotation.input"):
            np.testing.assert_array_equal(wanted[name][good], found[name][good])
            assert wanted[name].dtype == found[name].dtype
        seen += int(good.sum())
    assert 0 < seen == int((margin >= keep["least"]["margin"]).sum()) < len(margin)


def test_a_render_is_of_the_tables_that_it_was_made_with(
    assigned: MakeRecipe, run_recipe: MakeRecipe, embedded: Path, clusters: Path, tmp_path: Path
) -> None:
    out, copy, others = tmp_path / "out", Path(shutil.copytree(clusters, tmp_path / "copy")), tmp_path / "others"
    render(assigned(), str(out), here=True)
    assert render(assigned(annotation={"table": str(copy)}), str(out), here=True).made == 0
    cluster(str(embedded), K, str(others), seed=1)
    with pytest.raises(
        UserError, match=r"(?s)holds pairs of another recipe.*tables\.corpus\.annotations\.clusters\.table: \w+ in"
    ):
        render(assigned(annotation={"table": str(others)}), str(out), here=True)
    for_training(assigned({"shards": str(out)}, {"table": str(copy)}))
    with pytest.raises(UserError, match=r"corpus\.annotations\.clusters: .*out was rendered without it, or with other tables"):
        for_training(assigned({"shards": str(out)}, {"table": str(others)}))


def test_labels_of_shards_that_were_packed_again_are_refused(assigned: MakeRecipe, tiles: Path, tmp_path: Path) -> None:
    photos = Path(shutil.copytree(tiles.parent / "photos", tmp_path / "photos"))
    (photos / "cat" / "000.jpg").unlink()
    pack(str(photos), str(tmp_path / "again"), shard_size=30_000)
    with pytest.raises(UserError, match=r"corpus\.annotations\.clusters: row \d+ of .* tells of another image than row"):
        joined(assigned({"shards": str(tmp_path / "again")}))


def test_labels_of_other_shards_are_refused(assigned: MakeRecipe, tiles: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for shard in tiles.glob("*.tar"):
        shutil.copy(shard, renamed / f"other-{shard.name}")
    with pytest.raises(UserError, match=r"has no table for 8 of 8 shards, such as other-"):
        joined(assigned({"shards": str(renamed)}))


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ({"column": "cluster"}, "has no column 'cluster'; there are key, id, row"),
        ({"column": "margin"}, "margin holds float, and labels are whole numbers"),
        ({"least": {"confidence": 0.9}}, "has no column 'confidence'"),
    ],
)
def test_what_is_no_column_of_labels_is_refused(assigned: MakeRecipe, annotation: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        joined(assigned(annotation=annotation))


def test_more_labels_than_classes_are_refused(assigned: MakeRecipe) -> None:
    with pytest.raises(UserError, match=r"has label \d, and the task expects 2 classes, 0 to 1: set its `classes`"):
        joined(assigned(task={"classes": 2}))


def test_a_table_that_is_not_there_or_unfinished_is_refused(assigned: MakeRecipe, clusters: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="no finished folder of tables is there; `pseudolabel cluster` or `label` makes or completes one"
    ):
        joined(assigned(annotation={"table": str(tmp_path / "none")}))
    copy = Path(shutil.copytree(clusters, tmp_path / "copy"))
    (copy / "shards.parquet").write_bytes(b"other")
    with pytest.raises(UserError, match="is not the one that the manifest names"):
        joined(assigned(annotation={"table": str(copy)}))


def test_what_the_tables_hold_is_part_of_a_runs_identity_and_where_they_lie_is_not(
    assigned: MakeRecipe, embedded: Path, clusters: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(clusters, tmp_path / "copy")
    cluster(str(embedded), K, str(tmp_path / "others"), seed=1)
    same, moved, others = (
        RunFolder(assigned(annotation={"table": str(place)})).identity("pretrain")
        for place in (clusters, copy, tmp_path / "others")
    )
    assert same == moved
    assert same != others


@pytest.mark.slow
def test_clusters_are_learnt_beside_a_pretext_task(assigned: MakeRecipe, local_ray: None, clusters: Path) -> None:
    """Images whose margin is small have no label: they count for rotation only."""
    rows = rows_of(clusters)
    least = float(np.quantile(rows.column("margin").to_numpy(), 0.25))
    result = pretrain(assigned(annotation={"least": {"margin": least}}, epochs=12))
    found = result["tasks"]["assigned"]
    assert found["trivial"] == pytest.approx(1 / K)
    assert found["metric"] > 2 / K
    assert result["stages"]["samples"] == 16 * result["steps"]


def test_balanced_classes_count_alike_and_small_ones_at_most_tenfold(assigned: MakeRecipe, clusters: Path) -> None:
    sizes = json.loads((clusters / "report.json").read_text())["sizes"]
    plain, balanced = (PretextModel(assigned(task=task), 0).objectives["assigned"] for task in ({}, {"balance": True}))
    assert isinstance(balanced, ClassesObjective)
    labels = torch.from_numpy(np.repeat(np.arange(K), sizes))
    batch = {"assigned.label": labels, "weight": torch.ones(len(labels))}
    answer = torch.randn(len(labels), K, generator=torch.Generator().manual_seed(0))
    losses = F.cross_entropy(answer, labels, reduction="none")
    even = sum(float(losses[labels == label].mean()) for label in range(K)) / K
    found = balanced.judge(answer, batch, "assigned")
    assert float(found.loss / found.count) == pytest.approx(even, rel=1e-5)
    assert float(found.count) == pytest.approx(len(labels), rel=1e-5)
    assert float(plain.judge(answer, batch, "assigned").loss) == pytest.approx(float(losses.sum()), rel=1e-5)
    balanced.balance([1, 1000])
    assert balanced.shares is not None
    assert balanced.shares[:2].tolist() == pytest.approx([10, 0.5005])
    assert set(plain.state_dict()) == set(balanced.state_dict())


def test_a_classifier_is_kept_where_the_weights_have_one(assigned: MakeRecipe, tmp_path: Path) -> None:
    first = PretextModel(assigned(), 5)
    torch.save(backbone_file(first, assigned(), "x"), tmp_path / "start.pt")
    network = {"name": "shufflenet_v2_x0_5", "stem": "standard", "weights": str(tmp_path / "start.pt")}
    kept, new = (PretextModel(assigned(task={"head": head}, backbone=network), 6).heads() for head in ("kept", "new"))
    assert torch.equal(kept["assigned"]["0.weight"], first.heads()["assigned"]["0.weight"])
    assert not torch.equal(new["assigned"]["0.weight"], first.heads()["assigned"]["0.weight"])
    with pytest.raises(UserError, match="holds no classifier of 7 classes under that name"):
        PretextModel(assigned(task={"head": "kept", "classes": K + 1}, backbone=network), 6)
