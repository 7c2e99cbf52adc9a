"""Estimates how long a command will take and the memory that it needs, from some measured seconds of its own work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.materialize.job import Job
from pipeline.materialize.run import opened
from pipeline.recipe.schema import Recipe
from pipeline.rendering.units import UnitSource
from pipeline.streaming.connection import cluster_address
from trainers.downstream.evaluate import judge, probed_layer, probed_networks
from trainers.downstream.features import FeatureSet, Rank, checked_recipe, extract
from trainers.downstream.finetune import finetuning_job
from trainers.downstream.labelled import INITS, open_labelled
from trainers.downstream.passes import Batch, passes
from trainers.downstream.pretrained import Pretrained, started
from trainers.downstream.statistics import measuring
from trainers.labelling.blocks import BlockPool
from trainers.labelling.cluster_job import PER_CENTROID, ROWS, ClusteringJob
from trainers.labelling.embed import embed_job
from trainers.labelling.kmeans import assign
from trainers.labelling.network_job import images_alone
from trainers.labelling.rounds import ROUNDS, Round, done_rounds
from trainers.labelling.rounds import check as check_rounds
from trainers.learning.ranks import gathered
from trainers.networks.backbones import build_backbone
from trainers.planning.dry_run import Facts, done_shards
from trainers.planning.peak_memory import PeakMemory
from trainers.planning.trial import SECONDS, Stopwatch, Trial, elsewhere, settled_pace, try_job, try_on_workers, try_training
from trainers.pretraining import finished_result, prepared, pretraining_job
from trainers.running.capacity import nodes
from trainers.running.checkpoints import Checkpoints
from trainers.running.preflight import check_render
from trainers.running.run_log import open_run_log
from trainers.running.runs import RunFolder
from trainers.running.session import connect
from trainers.running.step_memory import check_memory, step_memory

_PASS = 1 / 3
"""What a step without gradients costs of one with them: the way there, without the twice as long way back."""

_KMEANS_ROUNDS = 20
"""Of k-means in each round of `rounds`; balancing a network's answers takes about as long."""

_PROBED = 512
"""Images on which a probe is timed."""

_TRIED = 4096
"""Centroids with which features are compared to measure, at most."""


@dataclass
class RunEstimate:
    """What was measured of a run.

    Args:
        began: Unix time at which the command began.
    """

    began: float
    seconds: float = 0.0
    measured: str = ""
    memory: int = 0

    def facts(self) -> Facts:
        """In words for people; memory only where all processes of the run are on this machine."""
        here = {"memory bytes": self.memory} if self.memory and cluster_address() is None else {}
        return {"estimated time seconds": round(self.seconds), "measured": self.measured, **here}


@contextmanager
def _watched(estimate: RunEstimate) -> Iterator[None]:
    with PeakMemory() as memory:
        yield
    estimate.memory = memory.bytes


def estimate_pretrain(recipe: Recipe, began: float | None = None, seconds: float = SECONDS) -> RunEstimate:
    """Train for some seconds as `pretrain` would, on its cluster; the run's folder is left as it is.

    Args:
        recipe: the recipe.
        began: Unix time at which the command began; by default now.
        seconds: how long to measure.

    Raises:
        UserError: what the run would refuse.
        RunError: the run would fail.
    """
    found = RunEstimate(began or time.time())
    if finished_result(RunFolder(recipe)) is not None:
        return found
    left = _left(recipe, "pretrain", prepared(recipe)[1])
    with _watched(found), elsewhere(recipe) as other:
        other, source, model = prepared(other)
        connect(other)
        if need := step_memory(model, other):
            check_memory(need, other, nodes())
        before = time.time() - found.began
        trial = try_training(pretraining_job(other, source), other, seconds)
    found.seconds = before + trial.start + left * trial.each
    found.measured = _words(trial, before, "step")
    return found


def estimate_finetune(
    recipe: Recipe,
    began: float | None = None,
    seconds: float = SECONDS,
    backbone: Pretrained | None = None,
    inits: Sequence[str] = INITS,
) -> RunEstimate:
    """Fine-tune for some seconds from the first start; all take as long.

    Arguments as of `estimate_pretrain` and `trainers.downstream.finetune.finetune`, errors as of the former.
    """
    found, weights = RunEstimate(began or time.time()), (backbone or started(recipe, inits)).weights
    with _watched(found), elsewhere(recipe) as other:
        data = open_labelled(other)
        connect(other)
        before = time.time() - found.began
        trial = try_training(finetuning_job(other, data, inits[0], weights or None), other, seconds)
    looks = data.testing().schedule.steps + min(data.training_once().schedule.steps, data.training().schedule.steps)
    left = sum(_left(recipe, f"finetune-{init}", data.training()) for init in inits)
    found.seconds = before + len(inits) * (trial.start + _PASS * trial.each * looks) + left * trial.each
    found.measured = _words(trial, before, "step")
    return found


def estimate_evaluate(
    recipe: Recipe,
    began: float | None = None,
    seconds: float = SECONDS,
    backbone: Pretrained | None = None,
    inits: Sequence[str] = INITS,
) -> RunEstimate:
    """Compute features of some images, and probes on them, as `evaluate` would.

    Arguments as of `estimate_pretrain` and `trainers.downstream.evaluate.evaluate`, errors as of the former.
    """
    found, backbone = RunEstimate(began or time.time()), backbone or started(recipe, inits)
    with _watched(found), elsewhere(recipe) as other:
        data = open_labelled(other)
        layer = probed_layer(data, backbone)
        connect(other)
        before, log = time.time() - found.began, open_run_log()
        config = {"data": data, "weights": backbone.weights, "layer": layer, "inits": inits, "run_log": log}
        config["seconds"] = seconds
        asked = time.time()
        answer = try_on_workers(_look, config, other, "evaluate", log)
        trial = settled_pace(asked, answer["times"])
    steps = _steps(data.training_once()) + _steps(data.testing()) + answer["measuring"]
    found.seconds = before + trial.start + steps * trial.each + answer["probe"] * data.train.samples
    found.measured = _words(trial, before, "batch")
    return found


def estimate_job(make: Callable[..., Job], recipe: Recipe, out: str, *how: Any, seconds: float = SECONDS) -> RunEstimate:
    """Do some samples of a render, an embedding or a labelling in an actor's place.

    Args:
        make: makes the job: `render_job`, `embed_job` or `label_job`.
        recipe: the recipe.
        out: its folder; shards that have a commit record there are not done again.
        how: further arguments of `make`.
        seconds: how long to measure.

    Raises:
        UserError: what the job would refuse.
        RunError: the job would fail.
    """
    import ray

    found, done = RunEstimate(time.time()), done_shards(out)
    with _watched(found):
        connect(recipe, check_render)
        job = make(recipe, out, *how)
        before = time.time() - found.began
        trial = try_job(job, seconds)
    actors = max(1, min(job.recipe.placement.actors, round(ray.cluster_resources().get("CPU", 1) - 1)))
    left = job.corpus.samples * (1 - done / max(1, len(job.corpus.urls)))
    found.seconds = before + trial.start + left * trial.each / actors
    found.measured = _words(trial, before, "sample")
    return found


def estimate_cluster(job: ClusteringJob, seconds: float = SECONDS) -> RunEstimate:
    """Assign some features to some centroids: each round of k-means and the end do the same with as many as there will be."""
    found, samples = RunEstimate(time.time()), job.corpus.samples
    with _watched(found):
        vectors = next(job.tables.vectors(np.flatnonzero(job.corpus.counts)[:1].tolist()))
        k = min(max(job.numbers), _TRIED)
        each = _assigning(vectors, k, job.identity["spherical"], job.threads, seconds)
    compared = 0.0  # pairs of a feature and a centroid
    for number, levels in zip(job.numbers, job.identity["levels"]):
        near = number if levels == 1 else number**0.5  # centroids that a feature is compared with in a round
        compared += samples * levels * near + job.identity["rounds"] * min(samples, number * PER_CENTROID) * near
    found.seconds = each * compared / k
    found.measured = f"{1000 * each:.3g} ms a feature and round of {k:,} clusters"
    return found


def estimate_rounds(recipe: Recipe, seconds: float = SECONDS) -> RunEstimate:
    """Compute features, cluster and train for some seconds each, and take that for all rounds that are not done.

    Clusters are those of drawn vectors, and labels those of a pretext task, as there are none yet. Errors as of
    `estimate_pretrain`.
    """
    found, spec = RunEstimate(time.time()), check_rounds(recipe)
    if not (left := spec.count - done_rounds(recipe)):
        return found
    with elsewhere(recipe) as other:
        one = Round(other, 0)
        try:
            if spec.run is None:
                one.write_start()
            embedding = estimate_job(embed_job, one.embedded(), one.url("features"), None, one.weights, spec.layer)
            training = estimate_pretrain(one.alike(), seconds=seconds)
        finally:
            RunFolder(other).clear(ROUNDS)
    samples = opened(images_alone(one.embedded())).samples
    network = build_backbone(one.embedded().training.backbone, recipe.image.size, recipe.seed).embedding(spec.layer)
    drawn = np.random.default_rng(recipe.seed).normal(size=(ROWS, network.width)).astype(np.float32)
    each = _assigning(drawn, spec.clusters, True, len(os.sched_getaffinity(0)), seconds)
    clustering = spec.heads * each * (samples + _KMEANS_ROUNDS * min(samples, spec.clusters * PER_CENTROID))
    found.seconds = left * (embedding.seconds + clustering + training.seconds)
    parts = f"features {embedding.measured}; clusters {clustering:.3g} s; training {training.measured}"
    found.measured, found.memory = f"{left} rounds: {parts}", max(embedding.memory, training.memory)
    return found


def _assigning(vectors: np.ndarray, k: int, spherical: bool, threads: int, seconds: float) -> float:
    """Seconds in which a feature is assigned to one of `k` centroids."""
    centroids, pool = np.resize(vectors, (k, vectors.shape[1])), BlockPool(threads)
    began, count = time.time(), 0
    while not count or time.time() - began < seconds / 3:
        assign(vectors, centroids, spherical, pool)
        count += len(vectors)
    return (time.time() - began) / count


def _look(config: dict[str, Any]) -> None:
    """The worker of `estimate_evaluate`: times of batches, seconds of all probes an image, batches to measure statistics."""
    import ray
    import ray.train
    import ray.train.torch

    data, run_log, context = config["data"], config["run_log"], ray.train.get_context()
    networks, measured = probed_networks(data, config["weights"], config["layer"], config["inits"])
    recipe = checked_recipe(data.recipe, networks.values(), ray.train.torch.get_device(), run_log)
    watch = Stopwatch(config["seconds"])
    (images,) = passes(data.training_once())

    def some() -> Iterator[Batch]:
        for batch in images:
            yield batch
            if watch():
                return

    rank = Rank(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    features = extract(networks, some(), recipe)
    began, n = time.time(), min(_PROBED, *gathered([len(features.y)], context.get_world_size()))
    few = FeatureSet({name: x[:n] for name, x in features.x.items()}, features.y[:n], features.ids[:n])
    if n > 1:
        judge(few, few, data, config["layer"], config["inits"], rank)
    more = sum(map(_steps, measuring(data, measured.values())))
    answer = {"times": watch.times, "probe": (time.time() - began) / max(1, n), "measuring": more}
    if context.get_world_rank() == 0:
        ray.get(run_log.set_result.remote(answer))


def _left(recipe: Recipe, stage: str, source: UnitSource) -> int:
    """Steps that are not done yet."""
    newest = Checkpoints(RunFolder(recipe).checkpoints(stage), recipe.training.keep).newest()
    return _steps(source) - (0 if newest is None else int(newest.split("-")[1]))


def _steps(source: UnitSource) -> int:
    return int(source.schedule.steps)


def _words(trial: Trial, before: float, unit: str) -> str:
    return f"{trial.each:.3g} s a {unit} ({trial.measured:,} measured), {before + trial.start:.0f} s to start"
