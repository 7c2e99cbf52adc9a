"""Clusters in two levels: as many as were asked for, each image in one of its own part, whatever memory allows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainers.labelling.test_kmeans import blobs, inertia
from trainers.labelling import hierarchy
from trainers.labelling.blocks import BlockPool
from trainers.labelling.hierarchy import Centroids, Points, shares, two_levels
from trainers.labelling.kmeans import assign, kmeans

POOL = BlockPool(2)


def reading(x: np.ndarray, rows: int) -> Points:
    """Reads points, some at a time."""

    def read(numbers: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(numbers), rows):
            which = np.arange(start, min(len(numbers), start + rows))
            yield which, x[numbers[which]]

    return read


def made(
    x: np.ndarray, k: int, spherical: bool, rows: int = 500, threads: int = 2, each: int = 64
) -> tuple[Centroids, list[float]]:
    """Centroids in two levels, and the inertia of the fine ones."""
    fine, coarse, sizes = two_levels(reading(x, rows), len(x), k, spherical, 10, 0, BlockPool(threads), each)
    return Centroids(fine.centroids, spherical, coarse.centroids, sizes), fine.inertia


@given(sizes=st.lists(st.integers(0, 1000), min_size=1, max_size=30), more=st.integers(0, 500))
def test_shares_add_up_and_no_part_is_without(sizes: list[int], more: int) -> None:
    sizes[0] += 1
    found = shares(np.array(sizes), len(sizes) + more)
    assert found.sum() == len(sizes) + more
    assert found.min() >= 1
    exact = np.array(sizes) * more / sum(sizes)
    assert (np.abs(found - 1 - exact) < 1).all()


@given(
    seed=st.integers(0, 10**6), k=st.integers(1, 40), spherical=st.booleans(), rows=st.sampled_from([7, 37, 900]),
    room=st.sampled_from([1, 4000, 2**30]), threads=st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=6, deadline=None)
def test_what_memory_allows_rows_at_a_time_and_threads_change_no_bit(
    seed: int, k: int, spherical: bool, rows: int, room: int, threads: int
) -> None:
    x = blobs(400, 25, 6, 0.2, seed)
    usual, usual_inertia = made(x, k, spherical)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hierarchy, "BYTES", room)
        found, found_inertia = made(x, k, spherical, rows, threads)
    for name in ("fine", "coarse", "sizes"):
        assert getattr(found, name).tobytes() == getattr(usual, name).tobytes()
    assert found_inertia == usual_inertia
    assert found.fine.shape == (k, 6)
    whole, pool = usual.assign(x, POOL), BlockPool(threads)
    parts = [usual.assign(x[start : start + rows], pool) for start in range(0, 100, rows)]
    for column, joined in zip(whole, map(np.concatenate, zip(*parts))):
        np.testing.assert_array_equal(joined[:100], column[:100])


@pytest.mark.parametrize("spherical", [True, False])
def test_an_image_is_in_the_nearest_cluster_of_the_nearest_coarse_one(spherical: bool) -> None:
    x = blobs(1500, 40, 8, 0.3)
    centroids, _ = made(x, 36, spherical)
    assert centroids.coarse is not None
    assert centroids.sizes is not None
    assert len(centroids.coarse) == 6
    labels, distance, margin = centroids.assign(x, POOL)
    parts = assign(x, centroids.coarse, spherical, POOL)[0]
    ends = np.cumsum(centroids.sizes)
    for part, (end, size) in enumerate(zip(ends, centroids.sizes)):
        own = assign(x[parts == part], centroids.fine[end - size : end], spherical, POOL)
        np.testing.assert_array_equal(labels[parts == part], own[0] + end - size)
        np.testing.assert_allclose(distance[parts == part], own[1], atol=1e-5)
        np.testing.assert_allclose(margin[parts == part], own[2], atol=1e-5)


def test_two_levels_cost_little_of_the_inertia() -> None:
    x = blobs(6000, 100, 16, 0.3)
    centroids, found = made(x, 100, False, each=256)
    assert inertia(x, centroids.fine) <= 1.25 * inertia(x, kmeans(x, 100, False, 20, 0, POOL).centroids)
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(found))
