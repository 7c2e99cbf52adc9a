"""Compares our k-means with scikit-learn's and faiss's: seconds, and the sum of squared distances that they end with.

    python -m benchmarks.kmeans [--features FOLDER] [--points 50000] [--width 128] [--k 100 1000] [--rounds 20] [--threads 2]
                                [--repeats 3] [--seed 0]

    pip install --constraint constraints.txt ".[bench]"

Points are plain (Euclidean), and all of them are clustered: features that `pseudolabel embed` has written, or else points around
centres drawn by `--seed`. Each contender chooses its first centroids once, in its usual way, and does `--rounds` of Lloyd's
rounds. Contenders take turns; seconds, by the clock and of the processor, are the least of all repeats. The sums are computed in
the same way for all. Exit code 1 if ours is over 1 % above the lowest sum, or takes over twice the processor seconds of the
faster of the two; our clustering in two levels is shown beside.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

from trainers.labelling.blocks import BlockPool
from trainers.labelling.cluster_job import PER_CENTROID
from trainers.labelling.hierarchy import Centroids, two_levels
from trainers.labelling.kmeans import kmeans

Contender = Callable[[np.ndarray, int, int, int], Centroids]
"""From points (n, d), the number of clusters, of rounds, and a seed to centroids."""

OURS, TWO_LEVELS = "ours", "ours, two levels"
MORE_INERTIA, TIMES = 1.01, 2.0


def made(points: int, width: int, seed: int) -> np.ndarray:
    """Points (n, width), float32, around 500 centres of unequal weight and width."""
    rng = np.random.default_rng(seed)
    centres, weights = rng.normal(size=(500, width)), rng.gamma(1, size=500)
    which = rng.choice(500, points, p=weights / weights.sum())
    spread = rng.uniform(0.3, 1.2, 500)[which]
    return (centres[which] + spread[:, None] * rng.normal(size=(points, width))).astype(np.float32)


def read(folder: str, points: int) -> np.ndarray:
    """The first features of a folder, float32 (n, width)."""
    from trainers.labelling.features import FeatureTables, open_features

    source = open_features(folder)
    found, count = [], 0
    for vectors in FeatureTables(source.url, source.outputs(0)[0], points).vectors():
        found.append(vectors)
        count += len(vectors)
        if count >= points:
            break
    return np.concatenate(found)[:points]


def contenders(threads: int) -> dict[str, Contender]:
    """All of them by name."""
    import faiss
    from sklearn.cluster import KMeans

    pool = BlockPool(threads)
    faiss.omp_set_num_threads(threads)

    def ours(x: np.ndarray, k: int, rounds: int, seed: int) -> Centroids:
        return Centroids(kmeans(x, k, spherical=False, rounds=rounds, seed=seed, pool=pool).centroids, spherical=False)

    def in_two_levels(x: np.ndarray, k: int, rounds: int, seed: int) -> Centroids:
        def some(numbers: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
            yield np.arange(len(numbers)), x[numbers]

        fine, coarse, sizes = two_levels(some, len(x), k, False, rounds, seed, pool, PER_CENTROID)
        return Centroids(fine.centroids, False, coarse.centroids, sizes)

    def sklearns(x: np.ndarray, k: int, rounds: int, seed: int) -> Centroids:
        found = KMeans(k, n_init=1, max_iter=rounds, tol=0, random_state=seed, algorithm="lloyd").fit(x)
        return Centroids(np.asarray(found.cluster_centers_, np.float32), spherical=False)

    def of_faiss(x: np.ndarray, k: int, rounds: int, seed: int) -> Centroids:
        found = faiss.Kmeans(x.shape[1], k, niter=rounds, seed=seed, max_points_per_centroid=len(x))
        found.train(x)
        return Centroids(np.asarray(found.centroids, np.float32), spherical=False)

    return {OURS: ours, TWO_LEVELS: in_two_levels, "scikit-learn": sklearns, "faiss": of_faiss}


def inertia(x: np.ndarray, centroids: Centroids) -> float:
    """The sum of squared distances to the centroid that each point is given, in float64."""
    labels = centroids.assign(x, BlockPool(1))[0]
    return float(((x.astype(np.float64) - centroids.fine[labels]) ** 2).sum())


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features")
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--k", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)  # before the libraries are loaded
    x = read(given.features, given.points) if given.features else made(given.points, given.width, given.seed)
    print(f"{len(x):,} x {x.shape[1]}, {given.rounds} rounds, {given.threads} threads, seed {given.seed}", flush=True)
    well, all_of_them = True, contenders(given.threads)
    for k in given.k:
        seconds: dict[str, float] = {}
        clock: dict[str, float] = {}
        sums: dict[str, float] = {}
        for _ in range(given.repeats):
            for name, cluster in all_of_them.items():
                began = time.perf_counter(), time.process_time()
                centroids = cluster(x, k, given.rounds, given.seed)
                clock[name] = min(clock.get(name, np.inf), time.perf_counter() - began[0])
                seconds[name] = min(seconds.get(name, np.inf), time.process_time() - began[1])
                sums[name] = inertia(x, centroids)
        for name in all_of_them:
            print(
                f"k {k}: {name}: {clock[name]:.2f} s, {seconds[name]:.2f} s of the processor, inertia {sums[name]:.6g}",
                flush=True,
            )
        theirs = [name for name in all_of_them if name not in (OURS, TWO_LEVELS)]
        well &= sums[OURS] <= MORE_INERTIA * min(sums[name] for name in theirs)
        well &= seconds[OURS] <= TIMES * min(seconds[name] for name in theirs)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
