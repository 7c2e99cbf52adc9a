"""Evaluates frozen features by the recipe's protocols: pretrained and random weights, and two baselines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from pipeline.errors import BudgetExceeded, RunError, UserError
from pipeline.recipe.schema import Recipe
from trainers.downstream.features import HISTOGRAM, FeatureSet, Rank, checked_recipe, extract, number_bytes
from trainers.downstream.findings import leave_findings, shown_points
from trainers.downstream.guesses import Guesses
from trainers.downstream.histogram import BINS
from trainers.downstream.labelled import INITS, Labelled, for_each_share, open_labelled
from trainers.downstream.linear import classify
from trainers.downstream.passes import left_out, passes
from trainers.downstream.pretrained import ClassHead, Pretrained, read_head, started, trained_layer
from trainers.downstream.protocols import PROTOCOLS, check_layers, read_numbers, read_words, reader, readings
from trainers.downstream.scores import most_frequent, score
from trainers.downstream.statistics import measuring, remeasure
from trainers.learning.optim import place
from trainers.learning.ranks import gathered
from trainers.networks.backbones import Backbone, build_backbone
from trainers.running.capacity import Node, nodes
from trainers.running.exclusive import exclusive
from trainers.running.fit import fit
from trainers.running.run_log import Record, open_run_log
from trainers.running.runs import EVALUATED, RunFolder
from trainers.running.session import connect

QUARANTINE = "evaluate.quarantine.json"
HEAD = "head"
"""Name of the protocol that judges the head of pretraining, and of its features where probes see those of another layer."""


def evaluate(
    recipe: Recipe,
    listeners: list[Callable[[Record], None]] | None = None,
    backbone: Pretrained | None = None,
    inits: Sequence[str] = INITS,
    pictures: bool = True,
) -> dict[str, Any]:
    """Judge features of the run's pretrained backbone, and of the same network with random weights, on the recipe's labelled
    corpora.

    Features are computed from each image's centre. `linear` and `knn` take the layer `downstream.layer`, else the deepest layer
    that pretraining has trained. Batch normalisation uses statistics that are measured on the training images for both starts:
    those of pretraining come from grey, erased and standardised images, and a random start has none. Features stay on the rank
    that has computed them. Leaves in the run's folder `evaluate.json` (what is returned), `evaluate.quarantine.json`, the images
    that could not be used, and `evaluate.npz`, what the report draws.

    Args:
        recipe: its `downstream` section names the corpora and protocols; the backbone comes from the run's `pretrain`.
        listeners: called with each log line.
        backbone: in place of that of the run.
        inits: the starts, some of `INITS`.
        pictures: whether to leave `evaluate.npz`.

    Returns:
        `downstream`: for each start and protocol, and each share of the labels, the accuracy with its standard error, the layer,
        how a linear probe was fitted (`fit`), and what it was measured on (`Labelled.measured`); and the accuracy of the `head`
        of a pretraining that has learnt classes itself. `chance`; `baseline`: a linear probe on colour histograms, which need no
        network; `classes` and their names; `quarantined`, and of each set `left_out`, why; `differs`: where the backbone was
        pretrained with another recipe.

    Raises:
        UserError: no pretrained backbone, no labels, labels that do not agree, no such layer or one that was not trained, or no
            image that can be used.
        BudgetExceeded: too many images cannot be used.
        RunError: the run failed.
    """
    return for_each_share(recipe, EVALUATED, lambda one: _evaluate(one, listeners, backbone, inits, pictures))


def _evaluate(
    recipe: Recipe,
    listeners: list[Callable[[Record], None]] | None,
    backbone: Pretrained | None,
    inits: Sequence[str],
    pictures: bool,
) -> dict[str, Any]:
    import ray

    data, backbone = open_labelled(recipe), backbone or started(recipe, inits)
    layer = probed_layer(data, backbone)  # here, so that a layer that does not exist is refused at once
    folder = RunFolder(recipe)
    connect(recipe)
    _check_room(feature_bytes(data, layer, inits), nodes())
    with exclusive(f"evaluate into {folder.url}"):
        run_log = open_run_log()
        head = read_head(recipe, backbone.identity, data.classes.names)
        config = {"data": data, "weights": backbone.weights, "layer": layer, "inits": inits, "head": head, "run_log": run_log}
        try:
            fit(_work, config, recipe, "evaluate", run_log, listeners or [], fresh=True)
        finally:
            folder.clear(f"evaluate-{folder.identity('evaluate')}")  # Ray Train's; an evaluation has no checkpoints
        answer = ray.get(run_log.result.remote())
        quarantine, findings = answer.pop("quarantine"), answer.pop("findings")
        outcome: dict[str, Any] = {
            "pretraining": backbone.identity,
            "differs": backbone.differs,
            **answer,
            **data.described(),
            "quarantined": len(quarantine),
            "left_out": left_out(quarantine),
        }
        folder.write_json(QUARANTINE, quarantine)
        folder.write_json(EVALUATED, outcome)
        if pictures:
            leave_findings(folder, data, findings, backbone.identity)
        return outcome


def probed_layer(data: Labelled, backbone: Pretrained) -> str | None:
    """The layer to probe, None for the feature vector: the one asked for, else the deepest whose weights are all trained.

    Raises:
        UserError: there is no such layer, or it was not trained; or the problem is no classification.
    """
    if not data.problem.probes:
        raise UserError(f"downstream.problem: {data.spec.problem} has no probes of frozen features; run `pseudolabel finetune`")
    network = _build(data)
    missing = network.load(backbone.weights) if backbone.weights else []
    check_layers(network, data.spec, missing)
    return trained_layer(network, data.spec.layer, missing, backbone.tasks, "downstream.layer")


def feature_bytes(data: Labelled, layer: str | None, inits: Sequence[str] = INITS) -> int:
    """Bytes of all features that an evaluation keeps, on all ranks together; `layer` is the probed one."""
    network = _build(data)
    numbers = {reads: read_numbers(network, reads, data.spec, layer) for reads in readings(data.spec)}
    kept = [BINS**3, *(each for each in numbers.values() for _ in inits)]
    return sum(side.samples * each * number_bytes(side.samples * each) for side in (data.train, data.test) for each in kept)


def _check_room(needed: int, available: list[Node]) -> None:
    held = sum(node.memory for node in available)
    if all(node.memory for node in available) and needed > held:
        raise UserError(
            f"the features need {needed / 2**30:,.1f} GiB, and the cluster has {held / 2**30:,.1f} GiB of memory: add nodes and "
            "training.workers, leave protocols out of downstream.protocols (`attentive` keeps every position), or fewer images"
        )


def _build(data: Labelled) -> Backbone:
    return build_backbone(data.recipe.training.backbone, data.recipe.image.size, data.recipe.seed)


def _work(config: dict[str, Any]) -> None:
    import ray
    import ray.train
    import ray.train.torch

    data, run_log, context = config["data"], config["run_log"], ray.train.get_context()
    rank = Rank(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    head: ClassHead | None = config["head"]
    networks, measured = probed_networks(data, config["weights"], config["layer"], config["inits"], head is not None)
    recipe = checked_recipe(data.recipe, networks.values(), rank.device, run_log)
    try:
        *plain, train, test = passes(*measuring(data, measured.values()), data.training_once(), data.testing())
        for images in plain:
            remeasure(measured, images, recipe, rank.world)
        sets, quarantine = {}, []
        for side, images in (("train", train), ("test", test)):
            sets[side] = extract(networks, images, recipe, images.source.corpus.samples)
            bad = images.quarantined(f"downstream.{side}")
            quarantine += [{"set": side, **row} for row in bad]
            check_complete(side, sets[side], images.source.corpus.samples, len(bad), rank)
        if sum(gathered([len(sets["train"].y)], rank.world)) < 2:
            raise UserError("downstream.train: only one image can be used, and probes need two")
    except (BudgetExceeded, RunError, UserError) as error:  # the same on every rank
        ray.get(run_log.set_error.remote(error))
        return
    answer = judge(sets["train"], sets["test"], data, config["layer"], config["inits"], rank, head)
    if rank.number == 0:
        ray.get(run_log.set_result.remote({**answer, "quarantine": quarantine}))


def check_complete(side: str, found: FeatureSet, total: int, bad: int, rank: Rank) -> None:
    """Check that each image of a set was seen once, or left out with a reason.

    Raises:
        RunError: it was not so.
    """
    seen = sum(gathered([len(found.ids)], rank.world))
    if seen + bad != total:
        raise RunError(f"downstream.{side}: of {total:,} images {seen:,} were seen and {bad:,} left out; run it again")


def probed_networks(
    data: Labelled, weights: dict[str, Any], layer: str | None, inits: Sequence[str] = INITS, head: bool = False
) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """The networks on this rank's device; with one for the head of pretraining, which reads the vector, if it is to be judged.

    Returns:
        From images to what is read, by `<start> <reading>` or `HEAD`; and those whose batch normalisation is to be measured, by
        start.
    """
    import ray.train.torch

    networks: dict[str, nn.Module] = {}
    measured: dict[str, nn.Module] = {}
    for init in inits:
        backbone = _build(data)
        if init == "pretrained":
            backbone.load(weights)
        place(backbone, ray.train.torch.get_device())
        readers = {reads: reader(backbone, reads, data.spec, layer) for reads in readings(data.spec)}
        named = {f"{init} {reads}": network for reads, network in readers.items()}
        if head and init == INITS[0] and not (layer is None and "layer" in readers):
            named[HEAD] = backbone.embedding()
        networks |= named
        measured[init] = next(iter(named.values())) if len(named) == 1 else backbone.eval()
    return networks, measured


def judge(
    train: FeatureSet,
    test: FeatureSet,
    data: Labelled,
    layer: str | None,
    inits: Sequence[str] = INITS,
    rank: Rank | None = None,
    head: ClassHead | None = None,
) -> dict[str, Any]:
    """Run every protocol on every network's features, and judge the head that pretraining has learnt, if there is one.

    To be called on every rank, with what `extract` returned there.
    """
    rank, spec = rank or Rank(), data.spec
    labels = np.bincount(np.concatenate(gathered([test.y], rank.world)), minlength=len(data.classes.names))
    learnt = sum(gathered([len(train.y)], rank.world))
    measured, rows = data.measured(int(labels.sum()), most_frequent(labels)), []
    findings: dict[str, Any] = {}
    map_layer = _build(data).map_layer
    for init in inits:
        for protocol in spec.protocols:
            how = PROTOCOLS[protocol]
            name = f"{init} {how.reads}"
            part, about = how.classify(train.rows(name), test.rows(name), data, rank)
            guesses = part.together(rank.world)
            read = read_words(how.reads, spec, layer, map_layer)
            about = {"init": init, "protocol": protocol, "layer": read, "labels": learnt, **about}
            rows.append({**about, **score(guesses.accuracy, len(guesses.y)), **measured})
            if not findings:
                points = shown_points(test.rows(name), rank)
                findings = {"init": init, "protocol": protocol, "layer": read, **vars(guesses), **points}
    if head is not None:
        own = test.rows(HEAD if HEAD in test.x else f"{INITS[0]} layer")
        named = head.named(own.x.astype(np.float32), data.classes.names)
        guesses = Guesses(own.ids, own.y, named, np.ones(len(own), np.float32)).together(rank.world)
        about = {"init": INITS[0], "protocol": HEAD, "labels": head.labels}
        rows.append({**about, **score(guesses.accuracy, len(guesses.y)), **measured})
    part, _ = classify(train.rows(HISTOGRAM), test.rows(HISTOGRAM), data.classes.trained, data.recipe.seed, rank)
    baseline = part.together(rank.world).accuracy
    return {"downstream": rows, "chance": measured["chance"], "baseline": baseline, "findings": findings}
