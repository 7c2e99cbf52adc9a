"""Clusters features by k-means: centroids from a sample, then the nearest of every image, each shard exactly once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from pipeline import storage
from pipeline.errors import UserError
from pipeline.materialize.driver import JobReport, Progress, materialize
from pipeline.materialize.folder import check_access
from pipeline.materialize.opened import Materialized
from pipeline.recipe.corpus import AnnotationSection
from pipeline.recipe.execution import Placement
from pipeline.recipe.schema import Recipe
from pipeline.shards.annotations import Annotation, open_annotation, tables_digest
from pipeline.shards.corpus import Corpus
from pipeline.shards.described import SHARDS
from pipeline.storage import absolute, join
from pipeline.streaming.connection import connect_ray
from trainers.labelling.blocks import processor_kind
from trainers.labelling.cluster_job import BEFORE, PER_CENTROID, PER_PCA, REPORT, ROWS, ClusteringJob
from trainers.labelling.features import FeatureTables, open_features

VERSION = 2
FLAT = 20_000
"""More clusters than these are made in two levels, if nothing else is asked for."""

_PACKAGES = ("pseudolabel", "numpy", "pyarrow", "torch")


def cluster(
    features: str,
    k: int | Sequence[int],
    out: str,
    spherical: bool = True,
    rounds: int = 20,
    seed: int = 0,
    duplicates: float | None = None,
    retry_failed: bool = False,
    progress: Callable[[Progress], None] | None = None,
    rows: int = ROWS,
    threads: int | None = None,
    pca: int | None = None,
    whiten: bool = True,
    levels: int | None = None,
    before: str | None = None,
    actors: int = 0,
) -> tuple[JobReport, dict[str, Any]]:
    """Cluster features by k-means; after an interruption the same call goes on.

    For each shard of the corpus a Parquet table has the columns `key`, `id`, `row` in the shard, `class` where the shards have
    labels, `label`, the number of the nearest centroid, `distance` to it, and `margin`, by how much the next one is further. The
    centroids are those of a sample, chosen by `seed` and the images' ids, and are found in this process. The result does not
    depend on `rows`, `threads` and `actors`.

    Args:
        features: folder that `embed` has written.
        k: how many clusters; there are fewer if the sample has fewer distinct features. Several numbers make as many clusterings
            of the same features: the columns of the second are `label_2`, `distance_2` and `margin_2`, and so on. Each is the one
            that its number alone would give; of equal numbers each has other first centroids.
        out: folder for the result, path or URL.
        spherical: compare directions only (by cosine), not lengths.
        rounds: of k-means, at most.
        seed: chooses the sample and the first centroids.
        duplicates: the least cosine of two near-duplicates; None looks for none. Images of one cluster that are near-duplicates,
            directly or by way of others, are a group, of which the first in the corpus is the original. The tables then have two
            more columns: `duplicate`, 0 for originals and images that are alone, else 1, and `original`, its id.
        retry_failed: try those shards again that failed in an earlier run.
        progress: called after each shard.
        rows: features read at a time.
        threads: CPU threads; by default as many as this process may use.
        pca: cluster so many principal components of the features (Caron et al. 2018), in place of these; None clusters the
            features. Components are those of the first `PER_PCA` images of the sample. Near-duplicates are those of the features.
        whiten: divide each component by its standard deviation.
        levels: 2 makes coarse clusters first, see `trainers.labelling.hierarchy`, 1 does not; None decides by `FLAT`.
        before: folder of labels that an earlier clustering gave the same images. K-means starts from the means of the features
            by these, so that clusters keep their numbers, and the report says how much the two have in common.
        actors: how many actors of Ray, of one CPU each, find each image's cluster; with 0 this process does.

    Returns:
        What was done, and the report, which is in the folder, too: sizes of the clusters, inertia over the rounds, and mutual
        information with the labels of the shards, where they have some; further clusterings are under `more`.

    Raises:
        UserError: there are no finished features, or the folder holds something else.
        RunError: features cannot be read, or storage refused an output; committed shards are kept.
    """
    job = clustering_job(
        features, k, out, spherical, rounds, seed, duplicates, rows, threads, pca, whiten, levels, before, actors
    )
    if actors:
        connect_ray()
    report = materialize(job, retry_failed, progress, here=not actors)
    return report, json.loads(storage.read_all(job.url(REPORT)))


def clustering_job(
    features: str,
    k: int | Sequence[int],
    out: str,
    spherical: bool = True,
    rounds: int = 20,
    seed: int = 0,
    duplicates: float | None = None,
    rows: int = ROWS,
    threads: int | None = None,
    pca: int | None = None,
    whiten: bool = True,
    levels: int | None = None,
    before: str | None = None,
    actors: int = 0,
) -> ClusteringJob:
    """Make the job of `cluster`, before any output is written; arguments and errors as there."""
    numbers = [k] if isinstance(k, int) else list(k)
    if not numbers or min(numbers) < 1 or rounds < 0:
        raise UserError(f"--k {k}, --rounds {rounds}: at least one cluster, and no fewer than 0 rounds")
    if duplicates is not None and not 0 < duplicates <= 1:
        raise UserError(f"--duplicates {duplicates}: a cosine above 0 and at most 1")
    if levels not in (None, 1, 2):
        raise UserError(f"--levels {levels}: it may be 1 or 2")
    if before is not None and (len(numbers) > 1 or levels == 2):
        raise UserError(f"{BEFORE}: one clustering of one level can keep the numbers of an earlier one: give one --k")
    source = open_features(features)
    check_access(out)
    names, sizes, counts = source.outputs(0)
    if not counts.sum():
        raise UserError(f"{source.url} holds no features: all images are quarantined")
    corpus = Corpus(source.shards.column("shard").to_pylist(), sizes.astype(np.int64), counts.astype(np.int64))
    sums = np.array([row["outputs"][0]["sha256"].encode() for row in source.rows()], "S64")
    identity = {
        "version": VERSION,
        "makes": "labels",
        "features": source.manifest["sha256"][SHARDS],
        "k": numbers if len(numbers) > 1 else numbers[0],
        "spherical": spherical,
        "rounds": rounds,
        "seed": seed,
        "sample": PER_CENTROID,
        "versions": {package: version(package) for package in _PACKAGES},
        "processor": processor_kind(torch.device("cpu")),
    }
    if duplicates is not None:
        identity["duplicates"] = duplicates
    if pca is not None:
        identity["pca"] = {"components": pca, "whiten": whiten, "sample": PER_PCA}
    identity["levels"] = [levels or (2 if number > FLAT and before is None else 1) for number in numbers]
    earlier = None if before is None else open_before(before, source, numbers[0])
    if before is not None:
        identity["before"] = tables_digest(BEFORE, before)
    threads = threads or len(os.sched_getaffinity(0))
    tables = FeatureTables(source.url, names, rows)
    recipe = placed(source.recipe, actors, 1 if actors else threads)
    where: dict[str, Any] = {"tables": tables, "threads": threads, "before": earlier}
    job = ClusteringJob(recipe, corpus, absolute(out), identity, sums, rows, **where)
    if pca is not None and not 1 <= pca <= (width := job.width):
        raise UserError(f"--pca {pca}: the features have {width} numbers, so 1 to {width} components")
    return job


def open_before(labels: str, features: Materialized, k: int) -> Annotation:
    """Open the labels that an earlier clustering gave the images of features.

    Raises:
        UserError: they are of other shards, or there were more clusters than `k`.
    """
    found = open_annotation(BEFORE, AnnotationSection(table=labels), features.shards.column("shard").to_pylist())
    there = json.loads(storage.read_all(join(found.url, REPORT)))["clusters"]
    if there > k:
        raise UserError(f"{BEFORE}: {labels} has {there} clusters, which keep numbers, and --k is {k}: give {there} or more")
    return found


def placed(recipe: Recipe, actors: int, threads: int = 1) -> Recipe:
    """The recipe of features with the actors that find clusters, at least one, and their threads."""
    return recipe.model_copy(update={"placement": Placement(actors=max(1, actors), threads=threads)})
