"""Estimates how long a command will take and the memory that it needs, from some measured seconds of its own work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.materialize.job import Job
from pipeline.materialize.run import asked, engine_chosen, opened, plan
from pipeline.recipe.schema import Recipe
from pipeline.rendering.engine import build_engine
from pipeline.rendering.units import UnitSource
from pipeline.streaming.connection import cluster_address
from trainers.downstream.evaluate import probed_layer, probed_networks
from trainers.downstream.features import checked_recipe, extract
from trainers.downstream.finetune import finetuning_job
from trainers.downstream.labelled import INITS, open_labelled
from trainers.downstream.linear import linear_probe
from trainers.downstream.passes import Batch, passes
from trainers.downstream.pretrained import read_pretrained
from trainers.downstream.statistics import measuring
from trainers.labelling.blocks import BlockPool
from trainers.labelling.cluster import PER_CENTROID, ROWS, ClusteringJob, some_vectors
from trainers.labelling.embed import embed_job
from trainers.labelling.kmeans import assign
from trainers.labelling.label import label_job
from trainers.labelling.network_job import images_alone
from trainers.labelling.rounds import ROUNDS, Round, done_rounds
from trainers.labelling.rounds import check as check_rounds
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


def estimate_finetune(recipe: Recipe, began: float | None = None, seconds: float = SECONDS) -> RunEstimate:
    """Fine-tune for some seconds from pretrained weights; both starts take as long. Arguments and errors as of
    `estimate_pretrain`.
    """
    found, weights = RunEstimate(began or time.time()), read_pretrained(recipe).weights
    with _watched(found), elsewhere(recipe) as other:
        data = open_labelled(other)
        connect(other)
        before = time.time() - found.began
        trial = try_training(finetuning_job(other, data, INITS[0], weights), other, seconds)
    looks = data.testing().schedule.steps + min(data.training_once().schedule.steps, data.training().schedule.steps)
    left = sum(_left(recipe, f"finetune-{init}", data.training()) for init in INITS)
    found.seconds = before + len(INITS) * (trial.start + _PASS * trial.each * looks) + left * trial.each
    found.measured = _words(trial, before, "step")
    return found


def estimate_evaluate(recipe: Recipe, began: float | None = None, seconds: float = SECONDS) -> RunEstimate:
    """Compute features of some images, and a probe on them, as `evaluate` would. Arguments and errors as of
    `estimate_pretrain`.
    """
    found, backbone = RunEstimate(began or time.time()), read_pretrained(recipe)
    with _watched(found), elsewhere(recipe) as other:
        data = open_labelled(other)
        layer = probed_layer(data, backbone)
        connect(other)
        before, log = time.time() - found.began, open_run_log()
        config = {"data": data, "weights": backbone.weights, "layer": layer, "run_log": log, "seconds": seconds}
        asked = time.time()
        answer = try_on_workers(_look, config, other, "evaluate", log)
        trial = settled_pace(asked, answer["times"])
    steps = _steps(data.training_once()) + _steps(data.testing()) + answer["measuring"]
    found.seconds = before + trial.start + steps * trial.each + answer["probe"] * data.train.samples
    found.measured = _words(trial, before, "batch")
    return found


def estimate_job(make: Callable[[], Job], done: int = 0, began: float | None = None, seconds: float = SECONDS) -> RunEstimate:
    """Do some samples of a render, an embedding or a labelling in an actor's place.

    Args:
        make: makes the job; it connects to Ray.
        done: shards that have a commit record.
        began: Unix time at which the command began; by default now.
        seconds: how long to measure.

    Raises:
        UserError: what the job would refuse.
        RunError: the job would fail.
    """
    import ray

    found = RunEstimate(began or time.time())
    with _watched(found):
        job = make()
        before = time.time() - found.began
        trial = try_job(job, seconds)
    actors = max(1, min(job.recipe.placement.actors, round(ray.cluster_resources().get("CPU", 1) - 1)))
    left = job.corpus.samples * (1 - done / max(1, len(job.corpus.urls)))
    found.seconds = before + trial.start + left * trial.each / actors
    found.measured = _words(trial, before, "sample")
    return found


def estimate_render(recipe: Recipe, out: str) -> RunEstimate:
    """Estimate a render; errors as of `estimate_job`."""

    def make() -> Job:
        connect(recipe, check_render)
        chosen = engine_chosen(recipe, here=False)
        return plan(chosen, out, asked(lambda: build_engine(chosen).identity(), chosen, here=False))

    return estimate_job(make, done_shards(out))


def estimate_embed(recipe: Recipe, out: str, *how: Any) -> RunEstimate:
    """Estimate an embedding; `how` are further arguments of `embed_job`, errors as of `estimate_job`."""

    def make() -> Job:
        connect(recipe, check_render)
        return embed_job(recipe, out, *how)

    return estimate_job(make, done_shards(out))


def estimate_label(recipe: Recipe, out: str, *how: Any) -> RunEstimate:
    """Estimate a labelling; `how` are further arguments of `label_job`, errors as of `estimate_job`."""

    def make() -> Job:
        connect(recipe, check_render)
        return label_job(recipe, out, *how)

    return estimate_job(make, done_shards(out))


def estimate_cluster(job: ClusteringJob, seconds: float = SECONDS) -> RunEstimate:
    """Assign some features to as many of them as there will be centroids: each round of k-means and the end do no more."""
    found, k = RunEstimate(time.time()), job.identity["k"]
    with _watched(found):
        each = _assigning(some_vectors(job), k, job.identity["spherical"], job.threads, seconds)
    found.seconds = each * _assigned(job.corpus.samples, k, job.identity["rounds"])
    found.measured = f"{1000 * each:.3g} ms a feature and round"
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
            embedding = estimate_embed(one.embedded(), one.url("features"), None, one.weights, spec.layer)
            training = estimate_pretrain(one.alike(), seconds=seconds)
        finally:
            RunFolder(other).clear(ROUNDS)
    samples = opened(images_alone(one.embedded())).samples
    network = build_backbone(one.embedded().training.backbone, recipe.image.size, recipe.seed).embedding(spec.layer)
    drawn = np.random.default_rng(recipe.seed).normal(size=(ROWS, network.width)).astype(np.float32)
    each = _assigning(drawn, spec.clusters, True, len(os.sched_getaffinity(0)), seconds)
    clustering = spec.heads * each * _assigned(samples, spec.clusters, _KMEANS_ROUNDS)
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


def _assigned(samples: int, k: int, rounds: int) -> int:
    """How many times a feature is assigned by k-means, and at its end."""
    return samples + rounds * min(samples, k * PER_CENTROID)


def _look(config: dict[str, Any]) -> None:
    """The worker of `estimate_evaluate`: times of batches, seconds of all probes an image, batches to measure statistics."""
    import ray
    import ray.train
    import ray.train.torch

    data, run_log, context = config["data"], config["run_log"], ray.train.get_context()
    networks = probed_networks(data, config["weights"], config["layer"])
    recipe = checked_recipe(data.recipe, networks.values(), ray.train.torch.get_device(), run_log)
    watch = Stopwatch(config["seconds"])
    (images,) = passes(data.training_once())

    def some() -> Iterator[Batch]:
        for batch in images:
            yield batch
            if watch():
                return

    features = extract(networks, some(), recipe, context.get_world_size())
    began, n = time.time(), min(_PROBED, len(features.y))
    y, classes = features.y[:n], data.classes.trained
    for x in features.x.values():
        if n > 1:
            linear_probe(x[:n], y, x[:n], y, classes, data.recipe.seed)
    more = sum(map(_steps, measuring(data, networks.values())))
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
