"""Weights for features, and the bytes of a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from pipeline.recipe import Recipe
from pipeline.rendering.renderer import Columns, Renderer
from pipeline.rendering.units import UnitRenderer
from pipeline.shards.opening import open_corpus
from pipeline.streaming.pairs import open_source
from tests.pipeline.materialize.conftest import tree
from tests.tiles import recipe_on
from trainers.downstream.classifier import Classifier
from trainers.labelling.cluster import cluster
from trainers.labelling.embed import embed
from trainers.networks.backbones import build_backbone, seeded
from trainers.running.runs import RunFolder

__all__ = ["tree"]


def random_weights(recipe: Recipe, folder: Path) -> str:
    """Write a file of random weights; returns its name."""
    network = build_backbone(recipe.training.backbone, recipe.image.size, 1).network
    torch.save(network.state_dict(), folder / "weights.pt")
    return str(folder / "weights.pt")


def random_classifier(recipe: Recipe, classes: tuple[str, ...] = ("cat", "coffee", "rocket")) -> None:
    """Write a classifier with random weights into the recipe's run."""
    with seeded(1):
        model = Classifier(recipe, len(classes), None)
    folder = RunFolder(recipe)
    folder.make()
    folder.write_weights("classifier.pt", {"classifier": model.state_dict(), "classes": list(classes)})


def rows_of(folder: Path) -> pa.Table:
    """The rows of all tables in a folder of features or labels."""
    listed = pq.read_table(folder / "shards.parquet").to_pylist()
    return pa.concat_tables([pq.read_table(folder / row["outputs"][0]["name"]) for row in listed])


def labels_in(batches: Iterable[Columns], column: str = "assigned.label") -> dict[int, Any]:
    """The label of task `assigned` of each sample that can be decoded, or another column, by its id."""
    found: dict[int, Any] = {}
    for columns in batches:
        there = columns["weight"] > 0
        found |= dict(zip(columns["id"][there].tolist(), columns[column][there].tolist()))
    return found


def joined(recipe: Recipe) -> dict[int, int]:
    """The same of an epoch of a recipe."""
    source = open_source(recipe)
    return labels_in(UnitRenderer(source, 1)(source.read(number)) for number in range(source.schedule.units(0)))


@pytest.fixture(scope="session")
def embedded(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of the tiles by a network with random weights: colours and textures, which tell of the photos. Read-only."""
    folder = tmp_path_factory.mktemp("embedded")
    recipe = recipe_on(tiles, folder, {}, {"precision": "float32"})
    embed(recipe, str(folder / "features"), weights=random_weights(recipe, folder), layer="stage2", here=True)
    return folder / "features"


K = 6
"""Number of clusters."""


@pytest.fixture(scope="session")
def clusters(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clusters of the tiles. Read-only."""
    out = tmp_path_factory.mktemp("clusters") / "clusters"
    cluster(str(embedded), K, str(out))
    return out


@pytest.fixture
def weights(run_recipe: Callable[..., Recipe], tmp_path: Path) -> str:
    """A file of random weights of the recipe's network, as torchvision would name them."""
    return random_weights(run_recipe(), tmp_path)


CLASSES = ["cat", "coffee", "rocket", "owl"]
"""Those of the teacher; the tiles have the first three."""


@pytest.fixture
def classifier(run_recipe: Callable[..., Recipe], tiles: Path) -> Classifier:
    """The classifier in the recipe's run: random weights, statistics of some tiles, four classes."""
    recipe = run_recipe(precision="float32")
    model = Classifier(recipe, 4, None).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    samples = [sample for i in range(8) for sample in open_corpus(str(tiles)).read(i, range(4))]
    with torch.no_grad():
        model.head.weight.mul_(20)
        model.logits(torch.from_numpy(Renderer(recipe, center=True)(samples, 0).columns["image"]))
    model.eval()
    folder = RunFolder(recipe)
    folder.make()
    folder.write_weights("classifier.pt", {"classifier": model.state_dict(), "classes": CLASSES})
    return model


def by_id(out: Path) -> dict[int, dict]:
    """The rows of all tables, by the image's id."""
    files = [row["outputs"][0]["name"] for row in pq.read_table(out / "shards.parquet").to_pylist()]
    return {row["id"]: row for name in files for row in pq.read_table(out / name).to_pylist()}
