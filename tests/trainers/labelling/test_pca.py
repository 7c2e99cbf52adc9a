"""Principal components are those of scipy, whitened ones vary alike, and threads change no bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.labelling import pca as module
from trainers.labelling.blocks import BlockPool
from trainers.labelling.pca import components, projected

POOL = BlockPool(2)


def cloud(seed: int, n: int, d: int, rank: int) -> np.ndarray:
    """Points (n, d) that vary in `rank` directions, each more than the next, away from 0."""
    random = np.random.default_rng(seed)
    axes = np.linalg.qr(random.normal(size=(d, d)))[0][:rank]
    return (random.normal(size=(n, rank)) * 2.0 ** -np.arange(rank) @ axes + 3).astype(np.float32)


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(30, 200),
    d=st.integers(2, 9),
    width=st.integers(1, 9),
    block=st.sampled_from([8, 64]),
)
@settings(max_examples=25)
def test_components_are_those_of_the_singular_values_and_threads_change_no_bit(
    seed: int, n: int, d: int, width: int, block: int
) -> None:
    x, width = cloud(seed, n, d, d), min(width, d)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        one, other = (components(x, width, False, BlockPool(threads)) for threads in (1, 3))
    assert one.table.tobytes() == other.table.tobytes()
    away = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    _, lengths, axes = np.linalg.svd(away, full_matrices=False)
    np.testing.assert_allclose(np.abs((one.table[1:] * axes[:width]).sum(1)), 1, atol=1e-4)
    assert one.share == pytest.approx((lengths[:width] ** 2).sum() / (lengths**2).sum())
    assert (np.take_along_axis(one.table[1:], np.abs(one.table[1:]).argmax(1)[:, None], 1) > 0).all()
    np.testing.assert_allclose(projected(x, one.table, POOL), away @ one.table[1:].T.astype(np.float64), atol=1e-4)


def test_whitened_components_vary_alike_and_apart() -> None:
    x = cloud(1, 3000, 6, 6)
    found = projected(x, components(x, 4, True, POOL).table, POOL)
    np.testing.assert_allclose(np.cov(found.T), np.eye(4), atol=0.01)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-3)


def test_directions_in_which_nothing_varies_are_left_out() -> None:
    assert components(cloud(2, 500, 8, 3), 6, True, POOL).width == 3
    alike = components(np.ones((10, 4), np.float32), 3, True, POOL)
    assert (alike.width, alike.share) == (1, 1.0)
    assert np.isfinite(projected(np.ones((2, 4), np.float32), alike.table, POOL)).all()


def test_each_point_is_projected_alone() -> None:
    x = cloud(3, 2500, 7, 7)
    table = components(x, 5, True, POOL).table
    parts = [projected(x[start : start + 900], table, POOL) for start in range(0, 2500, 900)]
    assert np.concatenate(parts).tobytes() == projected(x, table, POOL).tobytes()
    assert projected(x[:0], table, POOL).shape == (0, 5)
