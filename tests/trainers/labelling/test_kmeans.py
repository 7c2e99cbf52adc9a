"""K-means: as good as scipy's, repeatable, and the same however rows are cut and computed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.vq import kmeans2

from trainers.labelling import kmeans as module
from trainers.labelling.blocks import BlockPool
from trainers.labelling.kmeans import assign, kmeans

POOL = BlockPool(2)


def blobs(n: int, k: int, d: int, spread: float = 0.3, seed: int = 0) -> np.ndarray:
    """Points (n, d) around k centres."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(k, d))[rng.integers(0, k, n)] + spread * rng.normal(size=(n, d))).astype(np.float32)


def inertia(x: np.ndarray, centroids: np.ndarray) -> float:
    """Sum of squared distances to the nearest centroid, in float64."""
    x, c = x.astype(np.float64), centroids.astype(np.float64)
    return float(sum(((row - c) ** 2).sum(1).min() for row in x))


@pytest.mark.parametrize(("spread", "offset", "rank"), [(0.2, 0, 0), (0.2, 300, 0), (0.8, 0, 5)])
def test_inertia_is_within_a_hundredth_of_scipys(spread: float, offset: float, rank: int) -> None:
    """Of ten runs of scipy: of the best where the blobs stand apart, of the middle one where they overlap."""
    x = blobs(3000, 20, 16, spread) + np.float32(offset)
    found = kmeans(x, 20, spherical=False, rounds=50, seed=1, pool=POOL)
    theirs = [kmeans2(x.astype(np.float64), 20, iter=50, minit="++", rng=seed)[0] for seed in range(10)]
    assert inertia(x, found.centroids) <= 1.01 * sorted(inertia(x, centroids) for centroids in theirs)[rank]
    assert found.inertia[-1] == pytest.approx(inertia(x, found.centroids), rel=1e-3)
    assert all(after <= before * (1 + 1e-6) for before, after in zip(found.inertia, found.inertia[1:]))


def test_spherical_clusters_are_of_directions_and_lengths_do_not_count() -> None:
    x = blobs(2000, 8, 12, 0.1)
    found = kmeans(x, 8, spherical=True, rounds=20, seed=0, pool=POOL)
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, rtol=1e-5)
    longer = x * np.random.default_rng(0).uniform(0.5, 4, (len(x), 1)).astype(np.float32)
    labels, distance, margin = assign(x, found.centroids, True, POOL)
    again, _, _ = assign(longer, found.centroids, True, POOL)
    np.testing.assert_array_equal(labels, again)
    cosines = x @ found.centroids.T / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_array_equal(labels, cosines.argmax(1))
    np.testing.assert_allclose(distance, 1 - cosines.max(1), atol=1e-5)
    top = np.sort(cosines, 1)
    np.testing.assert_allclose(margin, top[:, -1] - top[:, -2], atol=1e-5)


def test_plain_distances_are_euclidean() -> None:
    x = blobs(500, 5, 7) + 50
    centroids = kmeans(x, 5, spherical=False, rounds=10, seed=0, pool=POOL).centroids
    labels, distance, margin = assign(x, centroids, False, POOL)
    wanted = np.sort(np.linalg.norm(x[:, None].astype(np.float64) - centroids[None], axis=2), 1)
    np.testing.assert_allclose(distance, wanted[:, 0], atol=2e-3)
    np.testing.assert_allclose(margin, wanted[:, 1] - wanted[:, 0], atol=4e-3)
    assert labels.dtype == np.int32


@pytest.fixture
def threads() -> Iterator[None]:
    """Gives torch its threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("spherical", [True, False])
def test_threads_and_the_number_of_rows_at_a_time_change_no_bit(spherical: bool, threads: None) -> None:
    x = blobs(5000, 30, 33)
    torch.set_num_threads(1)
    one = kmeans(x, 30, spherical, 10, 3, BlockPool(1))
    torch.set_num_threads(4)
    three = kmeans(x, 30, spherical, 10, 3, BlockPool(3))
    assert one.inertia == three.inertia
    np.testing.assert_array_equal(one.centroids, three.centroids)
    whole = assign(x, one.centroids, spherical, POOL)
    for rows in (1, 7, 1024, 1500):
        some = x if rows > 7 else x[:300]
        parts = [assign(some[start : start + rows], one.centroids, spherical, POOL) for start in range(0, len(some), rows)]
        for column, joined in zip(whole, map(np.concatenate, zip(*parts))):
            np.testing.assert_array_equal(joined, column[: len(some)])


@given(seed=st.integers(0, 10**6), k=st.integers(1, 40), d=st.integers(1, 70), spherical=st.booleans())
@settings(max_examples=30)
def test_what_a_point_is_given_does_not_depend_on_its_place(seed: int, k: int, d: int, spherical: bool) -> None:
    random = np.random.default_rng(seed)
    x, centroids = (random.normal(size=(n, d)).astype(np.float32) for n in (100, k))
    turned = random.permutation(100)
    for one, other in zip(assign(x, centroids, spherical, POOL), assign(x[turned], centroids, spherical, POOL)):
        np.testing.assert_array_equal(one[turned], other)


def test_many_clusters_are_found_from_one_choice_of_first_centroids() -> None:
    x = blobs(3000, 150, 8, 0.05)
    found = kmeans(x, 150, False, 20, 0, POOL)
    theirs = inertia(x, kmeans2(x.astype(np.float64), 150, iter=20, minit="++", rng=0)[0])
    assert inertia(x, found.centroids) <= 1.01 * theirs


def test_the_same_seed_gives_the_same_centroids_and_another_gives_others() -> None:
    x = blobs(800, 40, 8, 1.0)
    same = [kmeans(x, 12, True, 5, 7, POOL).centroids for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert not np.array_equal(same[0], kmeans(x, 12, True, 5, 8, POOL).centroids)


@given(distinct=st.integers(1, 6), copies=st.integers(1, 300), k=st.integers(7, 40), spherical=st.booleans())
@settings(max_examples=20)
def test_with_fewer_distinct_points_than_clusters_each_is_a_centroid(distinct: int, copies: int, k: int, spherical: bool) -> None:
    points = np.random.default_rng(distinct).normal(size=(distinct, 5)).astype(np.float32)
    x = np.tile(points, (copies, 1))
    found = kmeans(x, k, spherical, 20, 0, POOL)
    assert len(found.centroids) == distinct
    assert found.inertia[-1] == 0
    labels, distance, margin = assign(x, found.centroids, spherical, POOL)
    assert len(np.unique(labels)) == distinct
    assert (distance == 0).all()
    assert np.isinf(margin).all() == (distinct == 1)


def test_points_that_the_start_did_not_see_become_centroids_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_START", (1, 10))
    x = np.concatenate([np.ones((20, 3)), np.eye(3)]).astype(np.float32)
    assert len(kmeans(x, 4, False, 5, 0, POOL).centroids) == 4


def test_an_empty_cluster_is_given_half_of_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    x = blobs(600, 3, 4, 0.05)
    x -= x.mean(0)
    lost = torch.from_numpy(np.stack([x[0], x[1], np.full(4, 1e3, np.float32)]))  # no point is near the third

    def first(*_: object) -> torch.Tensor:
        return lost

    monkeypatch.setattr(module, "_first", first)
    found = kmeans(x, 3, False, 30, 0, POOL)
    assert found.split >= 1
    assert (np.bincount(assign(x, found.centroids, False, POOL)[0], minlength=3) > 0).all()


@given(seed=st.integers(0, 10**6), steps=st.integers(1, 4), spread=st.sampled_from([1e-3, 1.0, 1e4]))
@settings(max_examples=20)
def test_sums_are_the_same_in_any_order_and_by_whatever_way_points_came_to_their_clusters(
    seed: int, steps: int, spread: float
) -> None:
    random = np.random.default_rng(seed)
    x = torch.from_numpy((spread * random.normal(size=(300, 5))).astype(np.float32))
    turned, scale = torch.from_numpy(random.permutation(300)), 2.0 ** (30 - module._exponent(x))
    labels = [torch.from_numpy(random.integers(0, 4, 300)) for _ in range(steps)]
    slow, direct = module._Sums(x, 5, scale), module._Sums(x[turned], 5, scale)
    for each in labels:
        assert slow.move(each)
    assert not slow.move(labels[-1])
    direct.move(labels[-1][turned])
    before = torch.ones(5, 5)
    assert torch.equal(slow.means(before), direct.means(before))
    assert slow.counts.tolist() == torch.bincount(labels[-1], minlength=5).tolist()
    means = [x[labels[-1] == c].double().mean(0) for c in range(4)] + [torch.ones(5)]
    np.testing.assert_allclose(direct.means(before).numpy(), np.stack(means), rtol=1e-5, atol=1e-5 * spread)


@pytest.mark.parametrize("spherical", [True, False])
def test_clusters_keep_the_numbers_that_their_points_had(spherical: bool) -> None:
    """Another network shows the same images turned, and a few points changed their cluster since."""
    x = blobs(3000, 10, 16, 0.1)
    before, _, _ = assign(x, kmeans(x, 10, spherical, 20, 0, POOL).centroids, spherical, POOL)
    rng = np.random.default_rng(1)
    permuted = rng.permutation(10)[before]
    turn = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    turned = (x @ turn).astype(np.float32)
    known = permuted.copy()
    known[::10], known[5::50] = rng.integers(0, 10, 300), -1
    found = kmeans(turned, 10, spherical, 20, 0, POOL, known)
    np.testing.assert_array_equal(assign(turned, found.centroids, spherical, POOL)[0], permuted)


def test_a_number_that_none_had_is_given_half_of_the_largest_cluster() -> None:
    x = blobs(1000, 4, 8, 0.05)
    labels, _, _ = assign(x, kmeans(x, 4, True, 20, 0, POOL).centroids, True, POOL)
    found = kmeans(x, 4, True, 20, 0, POOL, np.where(labels == 2, 1, labels))
    assert found.split == 1
    assert len(np.unique(assign(x, found.centroids, True, POOL)[0])) == 4
