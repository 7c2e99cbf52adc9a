"""What a run would do: its steps, what it resumes from, the disk that it needs; it refuses what the run would refuse."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from torch import nn

from pipeline.errors import UserError
from pipeline.materialize.commit import committed
from pipeline.materialize.run import opened
from pipeline.recipe.schema import Recipe
from pipeline.rendering.units import UnitSource
from pipeline.shards.corpus import Corpus
from pipeline.storage import absolute, exists, is_local
from trainers.downstream.evaluate import feature_bytes, probed_layer
from trainers.downstream.labelled import INITS, Labelled, open_labelled
from trainers.downstream.pretrained import VECTOR, read_pretrained
from trainers.labelling import embed, label, rounds
from trainers.labelling.cluster_job import PER_CENTROID, ClusteringJob
from trainers.labelling.network_job import images_alone
from trainers.networks.backbones import build_backbone
from trainers.pretraining import finished_result, prepared, replacement_warning
from trainers.running.checkpoints import Checkpoints
from trainers.running.preflight import needs
from trainers.running.runs import RunFolder
from trainers.running.session import check_early

Facts = dict[str, str | int]
"""What is said of a run, by name; sizes and times, whose names end in `bytes` and `seconds`, are numbers."""

_NAMES_BYTES = 50
"""Bytes of a row's names in a table of features or labels: its key, id, row and class, before compression."""

_COPIES = {"adamw": 3, "sgd": 2, "lars": 2}
"""How often a checkpoint holds the weights' size: themselves, and what the optimizer keeps of each."""


def pretrain_plan(recipe: Recipe) -> Facts:
    """Say what `pretrain` would do; Ray is not started, and nothing is written but the index of shards that have none.

    Raises:
        UserError: what the run would refuse, or too little room on the disk.
    """
    check_early(recipe)
    recipe, source, model = prepared(recipe)
    folder, spec = RunFolder(recipe), recipe.training
    weights = _bytes(model)
    checkpoint = _COPIES[spec.optimizer.name] * weights
    room = (spec.keep + 1) * checkpoint + _bytes(model.backbone)  # one more while it is written
    steps = _steps(source)
    done = finished_result(folder) is not None
    return {
        "corpus": _corpus(source.corpus),
        "steps": steps,
        "resumes": "it is complete: nothing will be done without --fresh" if done else _resumes(folder, "pretrain", spec.keep),
        **({"replaces": words} if (words := replacement_warning(folder, recipe)) else {}),
        "network": f"{spec.backbone.name}, {sum(weight.numel() for weight in model.parameters()):,} weights with its objectives",
        **_resources(recipe),
        **({} if done else {"checkpoint bytes": checkpoint, **_disk(folder, room)}),
    }


def evaluate_plan(recipe: Recipe) -> Facts:
    """Say what `evaluate` would do; errors as in `pretrain_plan`."""
    check_early(recipe)
    data, backbone = open_labelled(recipe), read_pretrained(recipe)
    layer = probed_layer(data, backbone)
    return {
        **_shares(data),
        "training images": _corpus(data.train),
        "test images": _corpus(data.test),
        "classes": len(data.classes.names),
        "protocols": ", ".join(data.spec.protocols),
        "layer": layer or VECTOR,
        "features bytes": feature_bytes(data, layer),
        "batches": _steps(data.training_once()) + _steps(data.testing()),
        **_resources(recipe),
    }


def finetune_plan(recipe: Recipe) -> Facts:
    """Say what `finetune` would do; errors as in `pretrain_plan`."""
    check_early(recipe)
    data, backbone = open_labelled(recipe), read_pretrained(recipe)
    model, folder = data.problem.build(data.recipe, data.classes.trained, backbone.weights), RunFolder(recipe)
    checkpoint, steps = _COPIES[data.spec.optimizer.name] * _bytes(model), _steps(data.training())
    return {
        **_shares(data),
        "training images": _corpus(data.train),
        "test images": _corpus(data.test),
        "classes": len(data.classes.names),
        "steps": f"{steps:,} from pretrained weights, {steps:,} from random ones",
        **{f"resumes, {init}": _resumes(folder, f"finetune-{init}", recipe.training.keep) for init in INITS},
        **_resources(recipe),
        "checkpoint bytes": checkpoint,
        **_disk(folder, len(INITS) * (recipe.training.keep + 1) * checkpoint),
    }


def _shares(data: Labelled) -> Facts:
    """Of which share the other facts are, if there are several."""
    shares = data.spec.shares
    return {"shares of the labels": f"{', '.join(f'{s:g}' for s in shares)}; below is the last"} if len(shares) > 1 else {}


def embed_plan(
    recipe: Recipe, out: str, run: str | None, weights: str | None, layer: str | None, dtype: str, views: int
) -> Facts:
    """Say what `embed` would do; arguments as there, errors as in `pretrain_plan`."""
    _, layer = embed.check(recipe, out, run, weights, layer, dtype, views)
    network = build_backbone(recipe.training.backbone, recipe.image.size, recipe.seed).embedding(layer)
    return {"layer": layer or VECTOR, **_tables(recipe, out, network.width * np.dtype(dtype).itemsize)}


def label_plan(recipe: Recipe, out: str, run: str | None, top: int) -> Facts:
    """Say what `label` would do; arguments as there, errors as in `pretrain_plan`."""
    _, classes = label.check(recipe, out, run, top)
    return {"classes": len(classes), **_tables(recipe, out, 12 + 8 * min(top, len(classes)))}


def cluster_plan(job: ClusteringJob) -> Facts:
    """Say what `cluster` would do."""
    samples, most = job.corpus.samples, max(job.numbers)
    pca = job.identity.get("pca")
    return {
        "features": _corpus(job.corpus),
        "clusters": ", ".join(f"{k:,}" for k in job.numbers),
        **({"components": f"{pca['components']}{', whitened' if pca['whiten'] else ''}"} if pca else {}),
        "sample": f"{min(samples, most * PER_CENTROID):,} features, {job.identity['rounds']} rounds at most",
        "shards with a commit record": done_shards(job.out),
        "disk needed bytes": samples * (_NAMES_BYTES + 12 * len(job.numbers)),
    }


def rounds_plan(recipe: Recipe) -> Facts:
    """Say what `rounds` would do; errors as in `pretrain_plan`."""
    check_early(recipe)
    spec = rounds.check(recipe)
    first, folder = rounds.Round(recipe, 0), RunFolder(recipe)
    _, source, model = prepared(first.alike())
    network = build_backbone(recipe.training.backbone, recipe.image.size, recipe.seed).embedding(spec.layer)
    features = source.corpus.samples * (_NAMES_BYTES + network.width * 2)
    labels = spec.heads * source.corpus.samples * (_NAMES_BYTES + 12)
    checkpoint = _COPIES[recipe.training.optimizer.name] * _bytes(model)
    kept = spec.count if spec.keep == "all" else min(2, spec.count)
    room = kept * features + spec.count * (labels + _bytes(model)) + (recipe.training.keep + 1) * checkpoint
    return {
        "corpus": _corpus(source.corpus),
        "method": f"{spec.method}, {spec.clusters:,} clusters" + (f", {spec.heads} heads" if spec.heads > 1 else ""),
        "rounds": f"{spec.count}, {rounds.done_rounds(recipe)} of them done",
        "steps": f"{_steps(source):,} in each round",
        **({"replaces": words} if (words := replacement_warning(folder, recipe)) else {}),
        **_resources(recipe),
        "features of a round bytes": features,
        "checkpoint bytes": checkpoint,
        **_disk(folder, room),
    }


def done_shards(out: str) -> int:
    """How many shards have a commit record in the output folder of a job."""
    return len(committed(absolute(out))) if exists(out) else 0


def _tables(recipe: Recipe, out: str, row_bytes: int) -> Facts:
    corpus = opened(images_alone(recipe))
    return {
        "corpus": _corpus(corpus),
        "shards with a commit record": done_shards(out),
        "disk needed bytes": corpus.samples * (_NAMES_BYTES + row_bytes),
    }


def _steps(source: UnitSource) -> int:
    return int(source.schedule.steps)


def _corpus(corpus: Corpus) -> str:
    return f"{corpus.samples:,} samples in {len(corpus.urls):,} shards"


def _bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def _resumes(folder: RunFolder, stage: str, keep: int) -> str:
    newest = Checkpoints(folder.checkpoints(stage), keep).newest()
    return (
        "no checkpoint: it starts at step 0" if newest is None else f"from the checkpoint of step {int(newest.split('-')[1]):,}"
    )


def _resources(recipe: Recipe) -> Facts:
    wanted = needs(recipe)
    gpus = f"; {wanted.gpus:g} GPUs ({wanted.gpu_words})" if wanted.gpus else ""
    return {"resources": f"{wanted.cpus:g} CPUs ({wanted.cpu_words}){gpus}"}


def _disk(folder: RunFolder, needed: int) -> Facts:
    """Room that a run needs and, where its folder is local, has.

    Raises:
        UserError: too little is free.
    """
    if not is_local(folder.url):
        return {"disk needed bytes": needed}
    there = next(parent for parent in (Path(folder.url), *Path(folder.url).parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"storage.runs: {folder.url} needs {needed:,} bytes for checkpoints and weights, and {free:,} are free: "
            "lower training.keep, or name another folder"
        )
    return {"disk needed bytes": needed, "disk free bytes": free}
