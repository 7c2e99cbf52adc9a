"""Features: of every image, each shard exactly once, to the same bytes in every way of running."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
import torchvision

from pipeline.errors import RunError, UserError
from pipeline.materialize.rendered import open_rendered
from pipeline.materialize.verify import verify
from pipeline.recipe import Recipe
from pipeline.rendering.renderer import Renderer
from pipeline.shards.opening import open_corpus
from tests.tiles import Finished
from trainers.labelling import embed as embedding
from trainers.labelling import network_job
from trainers.labelling.embed import embed
from trainers.labelling.weights import read_weights
from trainers.networks.backbones import build_backbone
from trainers.networks.inputs import Normaliser

MakeRecipe = Callable[..., Recipe]
Tree = Callable[[Path], dict[str, bytes]]


def vectors(out: Path) -> dict[tuple[str, int], np.ndarray]:
    """The vector of each sample, by the name of its shard and its row."""
    found = {}
    for table in pq.read_table(out / "shards.parquet").to_pylist():
        for row in pq.read_table(out / table["outputs"][0]["name"]).to_pylist():
            found[table["shard"], row["row"]] = np.array(row["vector"], np.float32)
    return found


def test_every_image_has_a_row_that_names_it(run_recipe: MakeRecipe, tiles: Path, weights: str, tmp_path: Path) -> None:
    report = embed(run_recipe(), str(tmp_path / "out"), weights=weights, here=True)
    assert (report.shards, report.made, report.rows, report.quarantined) == (8, 8, 72, 0)
    corpus = open_corpus(str(tiles))
    for i in range(8):
        (path,) = (tmp_path / "out").glob(f"{corpus.shard_name(i).removesuffix('.tar')}-*.parquet")
        table = pq.read_table(path)
        there = corpus.read(i, range(int(corpus.counts[i])))
        assert table.column_names == ["key", "id", "row", "class", "vector"]
        assert table.schema.field("vector").type.list_size == 1024
        assert table.column("key").to_pylist() == [sample.key for sample in there]
        assert table.column("id").to_pylist() == [sample.id for sample in there]
        assert table.column("class").to_pylist() == [sample.label for sample in there]
        assert table.column("row").to_pylist() == list(range(len(there)))
    assert verify(str(tmp_path / "out")).problems == []


def test_a_feature_is_what_the_network_in_evaluation_mode_makes_of_the_centre_or_the_mean_of_views(
    run_recipe: MakeRecipe, tiles: Path, weights: str, tmp_path: Path
) -> None:
    recipe = run_recipe(precision="float32")
    embed(recipe, str(tmp_path / "out"), weights=weights, layer="stage2", dtype="float32", here=True)
    corpus = open_corpus(str(tiles))
    network = build_backbone(recipe.training.backbone, 32, 0)
    network.load(torch.load(weights, weights_only=True))
    normalise, layer = Normaliser(recipe.image.mean, recipe.image.std), network.embedding("stage2")

    def wanted(epoch: int) -> np.ndarray:
        crops = Renderer(recipe, center=not epoch)(corpus.read(0, range(4)), epoch).columns["image"]
        with torch.inference_mode():
            return layer(normalise(torch.from_numpy(crops))).numpy()

    found = vectors(tmp_path / "out")
    ours = np.stack([found[corpus.shard_name(0), row] for row in range(4)])
    np.testing.assert_allclose(ours, wanted(0), atol=1e-5)
    mean = embed(recipe, str(tmp_path / "mean"), weights=weights, layer="stage2", dtype="float32", views=3, here=True)
    assert mean.rows == 72
    found = vectors(tmp_path / "mean")
    ours = np.stack([found[corpus.shard_name(0), row] for row in range(4)])
    np.testing.assert_allclose(ours, np.mean([wanted(view) for view in range(3)], axis=0), atol=1e-5)
    assert np.abs(ours - wanted(0)).max() > 0.01


def test_neither_chunk_nor_threads_change_a_byte(run_recipe: MakeRecipe, weights: str, tmp_path: Path, tree: Tree) -> None:
    embed(run_recipe(), str(tmp_path / "one"), weights=weights, here=True)
    other = run_recipe({"placement": {"cpus": 0.5, "threads": 3}})
    embed(other, str(tmp_path / "other"), weights=weights, chunk=5, here=True)
    assert tree(tmp_path / "one") == tree(tmp_path / "other")


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_any_number_of_actors_gives_the_bytes_of_one_process(
    run_recipe: MakeRecipe, weights: str, tmp_path: Path, tree: Tree
) -> None:
    embed(run_recipe(), str(tmp_path / "alone"), weights=weights, here=True)
    for actors in (1, 2, 4):
        recipe = run_recipe({"placement": {"cpus": 0.5, "actors": actors}})
        embed(recipe, str(tmp_path / str(actors)), weights=weights, chunk=7)
        assert tree(tmp_path / str(actors)) == tree(tmp_path / "alone")


def test_a_feature_does_not_depend_on_the_images_around_it(
    run_recipe: MakeRecipe, tiles: Path, weights: str, tmp_path: Path
) -> None:
    corpus = Path(shutil.copytree(tiles, tmp_path / "corpus"))
    embed(run_recipe(), str(tmp_path / "whole"), weights=weights, here=True)
    shard = min(corpus.glob("*.tar"))
    content = bytearray(shard.read_bytes())
    starts = [n for n in range(0, len(content), 512) if content[n : n + 3] == b"\xff\xd8\xff"]
    for start in starts[1::2]:
        content[start : start + 3] = b"bad"
    shard.write_bytes(content)
    spoilt = run_recipe({"corpus": {"shards": str(corpus)}, "failures": {"budget": 0.5}})
    report = embed(spoilt, str(tmp_path / "spoilt"), weights=weights, here=True)
    assert report.quarantined == len(starts[1::2])
    whole, left = vectors(tmp_path / "whole"), vectors(tmp_path / "spoilt")
    assert len(left) == 72 - report.quarantined
    assert all(np.array_equal(whole[name], vector) for name, vector in left.items())
    rows = pq.read_table(tmp_path / "spoilt" / "quarantine.parquet").to_pylist()
    assert [row["row"] for row in rows] == list(range(1, len(starts), 2))
    assert verify(str(tmp_path / "spoilt")).problems == []


def test_committed_shards_stay_and_the_rest_is_made_again(
    run_recipe: MakeRecipe, weights: str, tmp_path: Path, tree: Tree
) -> None:
    out = tmp_path / "out"
    embed(run_recipe(), str(out), weights=weights, here=True)
    finished = tree(out)
    lost = sorted((out / "commits").iterdir())[3]
    lost.unlink()
    (out / "manifest.json").unlink()
    assert embed(run_recipe(), str(out), weights=weights, here=True).made == 1
    assert tree(out) == finished
    assert embed(run_recipe(), str(out), weights=weights, here=True).made == 0


def test_other_weights_or_another_layer_are_refused_with_the_difference(
    run_recipe: MakeRecipe, weights: str, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    embed(run_recipe(), out, weights=weights, here=True)
    with pytest.raises(UserError, match=r"(?s)features of another recipe.*layer: feature vector in the folder, stage2 now"):
        embed(run_recipe(), out, weights=weights, layer="stage2", here=True)
    with pytest.raises(UserError, match=r"(?s)features of another recipe.*views.*not there in the folder, .* now"):
        embed(run_recipe(), out, weights=weights, views=2, here=True)
    state = torch.load(weights, weights_only=True)
    torch.save({**state, "conv1.0.weight": state["conv1.0.weight"] * 2}, tmp_path / "others.pt")
    with pytest.raises(UserError, match=r"(?s)weights: \w+ in the folder"):
        embed(run_recipe(), out, weights=str(tmp_path / "others.pt"), here=True)
    with pytest.raises(UserError, match=r"holds features, not pairs; `pseudolabel render` makes these"):
        open_rendered(out)
    with pytest.raises(UserError, match="only pairs can be made again"):
        verify(out, deep=0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": "none.pt"}, "no weights at .*none.pt"),
        ({"weights": "words.pt"}, r"words\.pt is no file of weights by torch\.save"),
        ({"weights": "empty.pt"}, r"empty\.pt holds no weights"),
        ({"weights": "broken.pt"}, r"broken\.pt: the weight .* holds numbers that are not finite"),
        ({"layer": "stage9"}, "--layer: unknown layer 'stage9'"),
        ({"run": "runs/run"}, "--run and --weights both name weights"),
        ({"dtype": "int8"}, "--dtype: int8; it may be float16 or float32"),
        ({"views": 0}, "--views 0: at least one view"),
    ],
)
def test_what_cannot_be_embedded_is_refused_in_words(
    run_recipe: MakeRecipe, weights: str, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    (tmp_path / "words.pt").write_text("words")
    torch.save({"step": 3}, tmp_path / "empty.pt")
    torch.save({"conv1.0.weight": torch.full((3,), float("nan"))}, tmp_path / "broken.pt")
    given = {"weights": weights, **{key: str(tmp_path / value) if key == "weights" else value for key, value in change.items()}}
    with pytest.raises(UserError, match=words):
        embed(run_recipe(), str(tmp_path / "out"), here=True, **given)
    assert not (tmp_path / "out" / "commits").exists()


def test_a_runs_backbone_is_taken_at_the_deepest_layer_that_it_trained(
    calm: Finished, run_recipe: MakeRecipe, tmp_path: Path, tree: Tree
) -> None:
    calm.copied(tmp_path)
    embed(run_recipe(), str(tmp_path / "own"), here=True)
    embed(run_recipe(), str(tmp_path / "named"), run=str(tmp_path / "runs" / "run"), here=True)
    assert tree(tmp_path / "own") == tree(tmp_path / "named")
    assert json.loads((tmp_path / "own" / "manifest.json").read_text())["layer"] == "feature vector"


def test_an_image_whose_features_are_not_finite_is_quarantined(run_recipe: MakeRecipe, weights: str, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    torch.save({**state, "conv5.1.weight": state["conv5.1.weight"] * 1e38}, tmp_path / "huge.pt")
    recipe = run_recipe({"failures": {"budget": 72}})
    report = embed(recipe, str(tmp_path / "out"), weights=str(tmp_path / "huge.pt"), here=True)
    assert (report.rows, report.quarantined) == (0, 72)
    (reason,) = set(pq.read_table(tmp_path / "out" / "quarantine.parquet").column("reason").to_pylist())
    assert reason == embedding._NOT_FINITE


def test_weights_that_change_under_way_stop_the_command(run_recipe: MakeRecipe, weights: str, tmp_path: Path) -> None:
    def spoil(_: object) -> None:
        state = torch.load(weights, weights_only=True)
        torch.save({name: value + 1 for name, value in state.items()}, weights)

    with pytest.raises(RunError, match=r"weights\.pt has changed since the command started"):
        embed(run_recipe(), str(tmp_path / "out"), weights=weights, progress=spoil, here=True)
    assert not list((tmp_path / "out" / "commits").iterdir())


def test_a_machine_with_another_processor_stops_in_words(
    run_recipe: MakeRecipe, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = iter(["one kind", "another kind"])
    monkeypatch.setattr(network_job, "processor_kind", lambda _: next(kinds))
    with pytest.raises(RunError, match=r"the machines do not compute alike: one has .*one kind.*, another has .*another kind"):
        embed(run_recipe(), str(tmp_path / "out"), weights=weights, here=True)


@pytest.mark.parametrize(
    "form", [lambda state: {"state_dict": state}, lambda state: {f"module.{n}": v for n, v in state.items()}]
)
def test_a_state_dict_under_a_key_or_of_parallel_training_is_read(
    run_recipe: MakeRecipe, weights: str, tmp_path: Path, form: Callable[[dict], dict]
) -> None:
    recipe, state = run_recipe(), torch.load(weights, weights_only=True)
    torch.save(form(state), tmp_path / "other.pt")
    found, tasks, _ = read_weights(str(tmp_path / "other.pt"), recipe)
    assert tasks == ()
    assert found.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in found.items())


def test_what_a_run_started_from_does_not_change_whose_backbone_it_left(
    run_recipe: MakeRecipe, weights: str, tmp_path: Path
) -> None:
    plain = run_recipe()
    network = plain.training.backbone
    started = run_recipe(backbone={**network.model_dump(), "weights": weights})
    state = torch.load(weights, weights_only=True)
    torch.save({"backbone": state, "spec": network.model_dump(), "identity": "x"}, tmp_path / "backbone.pt")
    found = [read_weights(str(tmp_path / "backbone.pt"), recipe) for recipe in (plain, started)]
    assert found[0][2] == found[1][2]
    assert started.training.backbone.architecture() == network.architecture() == network.model_dump()


def test_views_that_would_all_be_the_centre_are_refused(run_recipe: MakeRecipe, weights: str, tmp_path: Path) -> None:
    still = run_recipe({"image": {"size": 32, "crop": "center", "flip": False}})
    with pytest.raises(UserError, match="all views of an image are the same"):
        embed(still, str(tmp_path / "out"), weights=weights, views=2, here=True)


def test_a_file_of_weights_of_timm_is_taken(run_recipe: MakeRecipe, tiles: Path, tmp_path: Path) -> None:
    model = timm.create_model("resnet10t", pretrained=False)
    torch.save(model.state_dict(), tmp_path / "timm.pth")
    recipe = run_recipe(backbone={"provider": "timm", "name": "resnet10t", "stem": "standard"}, precision="float32")
    embed(recipe, str(tmp_path / "out"), weights=str(tmp_path / "timm.pth"), dtype="float32", here=True)
    corpus = open_corpus(str(tiles))
    crops = torch.from_numpy(Renderer(recipe, center=True)(corpus.read(0, range(4)), 0).columns["image"])
    with torch.inference_mode():
        wanted = model.eval().forward_head(
            model.forward_features(Normaliser(recipe.image.mean, recipe.image.std)(crops)), pre_logits=True
        )
    found = vectors(tmp_path / "out")
    ours = np.stack([found[corpus.shard_name(0), row] for row in range(4)])
    np.testing.assert_allclose(ours, wanted.numpy(), atol=1e-4)


def test_whole_weights_of_torchvision_are_taken(run_recipe: MakeRecipe, tmp_path: Path) -> None:
    """The classifier, which features do not need, is among them."""
    model = torchvision.models.get_model("shufflenet_v2_x0_5", weights=None)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    report = embed(run_recipe(), str(tmp_path / "out"), weights=str(tmp_path / "model.pt"), here=True)
    assert report.rows == 72
