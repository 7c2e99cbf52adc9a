"""This project: its recipe for a job, and its engine on photos in memory, in a plain loop, over Ray Data, and to disk."""

from __future__ import annotations

from typing import Any

from benchmarks.work import Job
from pipeline.recipe import Recipe, parse_recipe

PASSES = False


def recipe_of(job: Job, **placement: Any) -> Recipe:
    """The recipe of a job."""
    options = dict(job.options)
    return parse_recipe(
        {
            "name": "bench",
            "seed": 1,
            "corpus": {"shards": list(job.shards)},
            "image": {"size": job.size, "crop": "center" if job.center else "random", "flip": not job.center}
            | options.get("image", {}),
            "tasks": {name: {} for name in job.tasks},
            "engine": options.get("engine", "cpu"),
            "placement": placement,
            "training": {"batch": options.get("global_batch", 256), "epochs": 1000, "order": options.get("order", {})},
        }
    )
