"""Evaluates frozen features by linear probe and nearest neighbours: pretrained and random weights, and two baselines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.errors import BudgetExceeded, UserError
from pipeline.recipe.schema import Recipe
from trainers.downstream.features import FeatureSet, checked_recipe, extract
from trainers.downstream.knn import knn
from trainers.downstream.labelled import INITS, Labelled, for_each_share, open_labelled
from trainers.downstream.linear import linear_probe
from trainers.downstream.passes import passes
from trainers.downstream.pretrained import VECTOR, ClassHead, Pretrained, read_head, read_pretrained, trained_layer
from trainers.downstream.scores import most_frequent, score
from trainers.downstream.statistics import measuring, remeasure
from trainers.learning.optim import place
from trainers.networks.backbones import Backbone, Embedding, build_backbone
from trainers.running.exclusive import exclusive
from trainers.running.fit import fit
from trainers.running.run_log import Record, open_run_log
from trainers.running.runs import EVALUATED, RunFolder
from trainers.running.session import connect

QUARANTINE = "evaluate.quarantine.json"
HEAD = "head"
"""Name of the protocol that judges the head of pretraining, and of its features where probes see those of another layer."""


def evaluate(recipe: Recipe, listeners: list[Callable[[Record], None]] | None = None) -> dict[str, Any]:
    """Probe the run's pretrained backbone, and the same network with random weights, on the recipe's labelled corpora.

    Features are computed from each image's centre, at the layer `downstream.layer`, else at the deepest layer that pretraining
    has trained. Batch normalisation uses statistics that are measured on the training images for both starts: those of
    pretraining come from grey, erased and standardised images, and a random start has none. Leaves in the run's folder
    `evaluate.json` (what is returned) and `evaluate.quarantine.json`, the images that could not be used.

    Args:
        recipe: its `downstream` section names the corpora; the backbone comes from the run's `pretrain`.
        listeners: called with each log line.

    Returns:
        `downstream`: for each start, and each share of the labels, the accuracy of the linear probe and of kNN with its standard
        error, the layer, and what it was measured on (`Labelled.measured`); and that of the `head` of a pretraining that has
        learnt classes itself. `chance`; `baseline`: a linear probe on colour histograms, which need no network; `classes` and
        their names; `quarantined`; `differs`: where the backbone was pretrained with another recipe.

    Raises:
        UserError: no pretrained backbone, no labels, labels that do not agree, no such layer or one that was not trained, or no
            image that can be used.
        BudgetExceeded: too many images cannot be used.
        RunError: the run failed.
    """
    return for_each_share(recipe, EVALUATED, lambda one: _evaluate(one, listeners))


def _evaluate(recipe: Recipe, listeners: list[Callable[[Record], None]] | None) -> dict[str, Any]:
    import ray

    data, backbone = open_labelled(recipe), read_pretrained(recipe)
    layer = probed_layer(data, backbone)  # here, so that a layer that does not exist is refused at once
    folder = RunFolder(recipe)
    connect(recipe)
    with exclusive(f"evaluate into {folder.url}"):
        run_log = open_run_log()
        head = read_head(recipe, backbone.identity, data.classes.names)
        config = {"data": data, "weights": backbone.weights, "layer": layer, "head": head, "run_log": run_log}
        try:
            fit(_work, config, recipe, "evaluate", run_log, listeners or [], fresh=True)
        finally:
            folder.clear(f"evaluate-{folder.identity('evaluate')}")  # Ray Train's; an evaluation has no checkpoints
        answer = ray.get(run_log.result.remote())
        quarantine = answer.pop("quarantine")
        outcome: dict[str, Any] = {
            "pretraining": backbone.identity,
            "differs": backbone.differs,
            **answer,
            **data.described(),
            "quarantined": len(quarantine),
        }
        folder.write_json(QUARANTINE, quarantine)
        folder.write_json(EVALUATED, outcome)
        return outcome


def probed_layer(data: Labelled, backbone: Pretrained) -> str | None:
    """The layer to probe, None for the feature vector: the one asked for, else the deepest whose weights are all trained.

    Raises:
        UserError: there is no such layer, or it was not trained; or the problem is no classification.
    """
    if not data.problem.probes:
        raise UserError(f"downstream.problem: {data.spec.problem} has no probes of frozen features; run `pseudolabel finetune`")
    network = _build(data)
    return trained_layer(network, data.spec.layer, network.load(backbone.weights), backbone.tasks, "downstream.layer")


def _build(data: Labelled) -> Backbone:
    return build_backbone(data.recipe.training.backbone, data.recipe.image.size, data.recipe.seed)


def _work(config: dict[str, Any]) -> None:
    import ray
    import ray.train
    import ray.train.torch

    data, run_log, context = config["data"], config["run_log"], ray.train.get_context()
    world = context.get_world_size()
    head: ClassHead | None = config["head"]
    embeddings = probed_networks(data, config["weights"], config["layer"])
    if head is not None and config["layer"] is not None:  # the head reads the vector
        embeddings[HEAD] = probed_networks(data, config["weights"], None)[INITS[0]]
    recipe = checked_recipe(data.recipe, embeddings.values(), ray.train.torch.get_device(), run_log)
    try:
        *measured, train, test = passes(*measuring(data, embeddings.values()), data.training_once(), data.testing())
        for images in measured:
            remeasure(embeddings, images, recipe, world)
        sets, quarantine = {}, []
        for side, images in (("train", train), ("test", test)):
            sets[side] = extract(embeddings, images, recipe, world)
            quarantine += [{"set": side, **row} for row in images.quarantined(f"downstream.{side}")]
        if len(sets["train"].y) < 2:
            raise UserError("downstream.train: only one image can be used, and probes need two")
    except (BudgetExceeded, UserError) as error:  # the same on every rank
        ray.get(run_log.set_error.remote(error))
        return
    if context.get_world_rank() == 0:
        answer = judge(sets["train"], sets["test"], data, config["layer"], head)
        ray.get(run_log.set_result.remote({**answer, "quarantine": quarantine}))


def probed_networks(data: Labelled, weights: dict[str, Any], layer: str | None) -> dict[str, Embedding]:
    """The networks with both starts on this rank's device, by the names of `INITS`."""
    import ray.train.torch

    found = {}
    for init in INITS:
        backbone = _build(data)
        if init == "pretrained":
            backbone.load(weights)
        place(backbone, ray.train.torch.get_device())
        found[init] = backbone.embedding(layer)
    return found


def judge(
    train: FeatureSet, test: FeatureSet, data: Labelled, layer: str | None, head: ClassHead | None = None
) -> dict[str, Any]:
    """Run every protocol on every network's features, and judge the head that pretraining has learnt, if there is one."""
    labels = np.bincount(test.y, minlength=len(data.classes.names))
    measured, rows = data.measured(len(test.y), most_frequent(labels)), []
    trained, seed = data.classes.trained, data.recipe.seed
    for init in INITS:
        sides = (train.x[init], train.y, test.x[init], test.y, trained)
        accuracies = {"linear": linear_probe(*sides, seed=seed), "knn": knn(*sides, neighbours=data.spec.neighbours)}
        for protocol, accuracy in accuracies.items():
            about = {"init": init, "protocol": protocol, "layer": layer or VECTOR, "labels": len(train.y)}
            rows.append({**about, **score(accuracy, len(test.y)), **measured})
    if head is not None:
        right = head.named(test.x.get(HEAD, test.x[INITS[0]]), data.classes.names) == test.y
        about = {"init": INITS[0], "protocol": HEAD, "labels": head.labels}
        rows.append({**about, **score(float(right.mean()), len(test.y)), **measured})
    baseline = linear_probe(train.x["histogram"], train.y, test.x["histogram"], test.y, trained, seed=seed)
    return {"downstream": rows, "chance": measured["chance"], "baseline": baseline}
