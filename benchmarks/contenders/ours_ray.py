"""This project through Ray Data: actors render (placement `workers`), or they read and this process renders (`trainer`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.contenders import plain_ray
from benchmarks.contenders.ours import recipe_of
from benchmarks.work import Batch, Job
from pipeline.ordering.order import Geometry, Schedule
from pipeline.rendering.units import UnitSource, row_bytes
from pipeline.shards.opening import open_corpus
from pipeline.streaming.batches import ahead
from pipeline.streaming.memory import keep_memory
from pipeline.streaming.plan import steps, units

PASSES = False


def batches(job: Job) -> Iterator[Batch]:
    """Endless batches, as a training worker receives them."""
    place = dict(job.options).get("placement", "workers")
    placement = {"render": place, "actors": job.workers} if place == "workers" else {"render": place, "threads": job.workers}
    recipe = recipe_of(job, **placement)
    corpus = open_corpus(recipe.corpus.shards)
    geometry = Geometry.of(recipe.training.order, recipe.training.batch, row_bytes(recipe))
    source = UnitSource(recipe, corpus, Schedule(corpus.counts, geometry, recipe.seed, recipe.training.epochs))
    source = replace(source, image=not job.tasks or bool({"occlusion", "colorization"} & set(job.tasks)))  # as in training
    keep_memory()  # as a training worker does
    with plain_ray.quietly():
        for _, columns in ahead(steps([source], units([source], crops=True), 0, 1), 2):
            yield columns
