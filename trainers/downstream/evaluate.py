"""Evaluation of frozen features: linear probe and nearest neighbours, pretrained against random, with baselines beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.recipe.schema import Recipe
from trainers.backbones import Backbone, Output, build_backbone
from trainers.board import Record, open_board
from trainers.downstream.features import FeatureSet, extract
from trainers.downstream.knn import knn
from trainers.downstream.labelled import INITS, Labelled, open_labelled, pretrained
from trainers.downstream.linear import linear_probe
from trainers.fit import fit
from trainers.optim import place
from trainers.runs import RunFolder
from trainers.session import alone, connect

RESULT = "evaluate.json"


def evaluate(recipe: Recipe, listeners: list[Callable[[Record], None]] | None = None) -> dict[str, Any]:
    """Probe the run's pretrained backbone, and the same network with random weights, on the recipe's labelled corpora.

    The features are those of each image's centre, from the layer `downstream.layer`, with batch normalisation as in evaluation.
    Leaves `evaluate.json` (what is returned) in the run's folder.

    Args:
        recipe: its `downstream` section says on what; the backbone comes from the run's `pretrain`.
        listeners: called with each log line.

    Returns:
        `downstream`: accuracy of the linear probe and of kNN for each start; `chance`; `baseline`: a linear probe on colour
        histograms, which need no network; `classes`.

    Raises:
        UserError: no pretrained backbone, no labels, labels that do not agree, or no such layer.
        RunError: the run failed.
    """
    import ray

    data = open_labelled(recipe)
    backbone, pretraining = pretrained(recipe)
    weights = {"pretrained": backbone, "random": None}
    networks(data, weights)  # here too, so that a layer that does not exist is refused at once
    folder = RunFolder(recipe)
    connect(recipe)
    with alone(f"evaluate into {folder.url}"):
        board = open_board()
        config = {"data": data, "weights": weights, "board": board}
        fit(_work, config, recipe, "evaluate", board, listeners or [], fresh=True)
        outcome: dict[str, Any] = {"pretraining": pretraining, **ray.get(board.answer.remote())}
        folder.write_json(RESULT, outcome)
        return outcome


def networks(data: Labelled, weights: dict[str, Any]) -> dict[str, Backbone]:
    """The backbones to compare, by how they start."""
    found = {}
    for init in INITS:
        outputs: tuple[Output, ...] = ("vector",) if data.spec.layer is None else ("map",)
        backbone = build_backbone(data.recipe.training.backbone, data.recipe.image.size, data.recipe.seed, outputs)
        if weights[init] is not None:
            backbone.load(weights[init])
        found[init] = backbone
    return found


def _work(config: dict[str, Any]) -> None:
    import ray
    import ray.train
    import ray.train.torch

    data: Labelled = config["data"]
    device = ray.train.torch.get_device()
    embeddings = {}
    for init, backbone in networks(data, config["weights"]).items():
        place(backbone, device)
        embeddings[init] = backbone.embedding(data.spec.layer)
    train = extract(embeddings, data.once(data.train), data.recipe)
    test = extract(embeddings, data.once(data.test), data.recipe)
    if ray.train.get_context().get_world_rank() == 0:
        ray.get(config["board"].conclude.remote(judge(train, test, data)))


def judge(train: FeatureSet, test: FeatureSet, data: Labelled) -> dict[str, Any]:
    """All protocols on all features."""
    rows = []
    for init in INITS:
        sides = (train.x[init], train.y, test.x[init], test.y, data.classes)
        accuracies = {"linear": linear_probe(*sides, seed=data.recipe.seed), "knn": knn(*sides, neighbours=data.spec.neighbours)}
        rows += [{"init": init, "protocol": p, "accuracy": a, "labels": len(train.y)} for p, a in accuracies.items()]
    baseline = linear_probe(train.x["histogram"], train.y, test.x["histogram"], test.y, data.classes, seed=data.recipe.seed)
    return {"downstream": rows, "chance": data.chance, "baseline": baseline, "classes": data.classes}
