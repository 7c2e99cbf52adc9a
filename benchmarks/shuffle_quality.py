"""Measures how well the order mixes, compared with a full shuffle: mean displacement, and same-shard pairs in a batch.

    python -m benchmarks.shuffle_quality [--shards 1000] [--samples 1000] [--batch 256]

No data is read: the order is a function of counts, recipe and seed. Prints a row for each number of lanes.
"""

from __future__ import annotations

import argparse

import numpy as np

from pipeline.ordering.order import Geometry, Schedule
from pipeline.ordering.quality import mixing


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=1000, help="of each shard")
    parser.add_argument("--batch", type=int, default=256)
    given = parser.parse_args()
    counts = np.full(given.shards, given.samples)
    print(f"{'lanes':>6} {'window':>6} {'displacement':>13} {'same shard':>11}")
    for lanes in (lanes for lanes in (1, 8, 64, given.batch) if given.batch % lanes == 0):
        for window in (1, 16):
            ours, full = mixing(Schedule(counts, Geometry(given.batch, lanes, min(lanes, 8), window), seed=0, epochs=1))
            print(f"{lanes:6} {window:6} {ours.displacement:13.3f} {ours.same_shard:11.2%}")
    print(f"{'full shuffle':>13} {full.displacement:13.3f} {full.same_shard:11.2%}")


if __name__ == "__main__":
    main()
