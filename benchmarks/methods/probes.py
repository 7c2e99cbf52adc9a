"""What a backbone's frozen features are worth, by the probes of `pseudolabel evaluate`, at its vector and one stage before."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch

from benchmarks.methods.ours import stream
from benchmarks.methods.rows import Setting
from pipeline.recipe import Recipe
from pipeline.rendering.units import UnitSource
from pipeline.shards.label_share import select_share
from trainers.downstream.features import extract
from trainers.downstream.knn import knn
from trainers.downstream.labelled import open_labelled
from trainers.downstream.linear import linear_probe
from trainers.downstream.passes import Batch, usable
from trainers.downstream.statistics import MOST_IMAGES, remeasure
from trainers.learning.optim import place
from trainers.networks.backbones import Backbone

LAYERS = {"vector": None, "layer3": "layer3"}
_CURVE = {"vector": None}


class Probes:
    """The labelled images, which are the same for all rows and seeds.

    Args:
        recipe: its `downstream` section names them.
        setting: how many of them are used.
    """

    def __init__(self, recipe: Recipe, setting: Setting) -> None:
        labelled = open_labelled(recipe)
        self._data = replace(labelled, test=select_share(labelled.test, setting.tested, recipe.seed))

    @property
    def counts(self) -> dict[str, int]:
        """How many images there are."""
        return {"labels": self._data.train.samples, "tested": self._data.test.samples}

    def __call__(self, backbone: Backbone, curve: bool = False) -> dict[str, float]:
        """Accuracies of kNN and linear probe at each layer, by name; for a curve, kNN at the vector only."""
        frozen = place(copy.deepcopy(backbone), "cpu")
        assert isinstance(frozen, Backbone)
        networks = {name: frozen.embedding(layer) for name, layer in (_CURVE if curve else LAYERS).items()}
        data, recipe = self._data, self._data.recipe
        remeasure({"vector": networks["vector"]}, _passed(data.training_some(MOST_IMAGES)), recipe)  # `layer3` is a part of it
        train, test = (extract(networks, _passed(source), recipe) for source in (data.training_once(), data.testing()))
        found = {}
        for name in networks:
            sides = (train.x[name], train.y, test.x[name], test.y, data.classes.trained)
            found[f"knn {name}"] = knn(*sides, neighbours=data.spec.neighbours)
            if not curve:
                found[f"linear {name}"] = linear_probe(*sides, seed=recipe.seed)
        return found


def _passed(source: UnitSource) -> Iterator[Batch]:
    for columns in stream(source):
        yield usable(columns, torch.device("cpu"))
