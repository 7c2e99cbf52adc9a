"""Measures the evaluation of many features: seconds and peak memory of kNN and of the linear probe.

    python -m benchmarks.evaluation [--features 1000000] [--width 512] [--tested 5000] [--classes 10] [--threads 1]

The features are random normal numbers, kept as `evaluate` keeps them; the class of a sample is the largest of as many random
linear functions of its features, with noise, so that there is something to learn. All of it is done by one process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from benchmarks.render_memory import peak
from trainers.downstream.features import MANY, FeatureRows, Rank
from trainers.downstream.knn import vote
from trainers.downstream.linear import classify

_PART = 16_384
_NOISE = 4.0


def made(count: int, width: int, classes: int, seed: int, many: bool) -> FeatureRows:
    """So many features and labels."""
    rng, functions = np.random.default_rng(seed), np.random.default_rng(99).standard_normal((width, classes))
    x, y = np.empty((count, width), np.float16 if many else np.float32), np.empty(count, np.int64)
    for first in range(0, count, _PART):
        part = rng.standard_normal((min(_PART, count - first), width), dtype=np.float32)
        scores = part @ functions.astype(np.float32) + _NOISE * rng.standard_normal((len(part), classes), dtype=np.float32)
        x[first : first + len(part)], y[first : first + len(part)] = part, scores.argmax(1)
    ids = np.sort(rng.integers(0, 2**63, count, dtype=np.uint64))
    return FeatureRows(ids, y, x)


def main() -> None:
    """Make the features, run both protocols, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("features", 1_000_000), ("width", 512), ("tested", 5_000), ("classes", 10), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    before = peak()
    many = given.features * given.width >= MANY
    counts = (given.features, given.tested)
    train, test = (made(count, given.width, given.classes, seed, many) for seed, count in enumerate(counts))
    print(f"{given.features:,} x {given.width} features as {train.x.dtype}: {(train.x.nbytes + test.x.nbytes) / 2**20:,.0f} MiB")
    print(f"peak: {before:,.0f} MiB at first, {peak():,.0f} MiB with the features")
    with measured(f"kNN of {given.tested:,}") as said:
        said.append(vote(train, test, given.classes, 20, Rank()).accuracy)
    with measured("linear probe") as said:
        guesses, fit = classify(train, test, given.classes, 0, Rank())
        said.append(guesses.accuracy)
    print(f"fit: {fit}")


@contextmanager
def measured(what: str) -> Iterator[list[float]]:
    """Print elapsed and processor seconds, the accuracy that the block appends, and the peak memory."""
    said: list[float] = []
    began, before = time.perf_counter(), time.process_time()
    yield said
    seconds, cpu = time.perf_counter() - began, time.process_time() - before
    print(f"{what}: {seconds:.1f} s, of the processor {cpu:.1f} s; accuracy {said[0]:.3f}; peak {peak():,.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
