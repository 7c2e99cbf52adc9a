"""Maps of features: like features lie near each other, and without scikit-learn there is a plainer map that says so."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from trainers.downstream.layout import laid_out, principal


def groups(n: int, width: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Features around three centres, and of which each is."""
    rng = np.random.default_rng(0)
    centres, of = 6 * rng.standard_normal((3, width)), np.arange(n) % 3
    return (centres[of] + rng.standard_normal((n, width))).astype(np.float32), of


def nearest_is_of_the_same_group(points: np.ndarray, of: np.ndarray) -> bool:
    far = np.square(points[:, None] - points[None]).sum(2)
    np.fill_diagonal(far, np.inf)
    return bool((of[far.argmin(1)] == of).mean() > 0.95)


def test_groups_stay_together_and_the_map_is_the_same_every_time() -> None:
    x, of = groups(36)
    points, how = laid_out(x, seed=1)
    assert how == "t-SNE"
    assert (points.shape, points.dtype) == ((36, 2), np.float32)
    assert nearest_is_of_the_same_group(points, of)
    assert np.array_equal(points, laid_out(x, seed=1)[0])


def test_without_scikit_learn_the_map_is_of_principal_components_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    x, of = groups(36)
    points, how = laid_out(x, seed=1)
    assert "scikit-learn is not installed" in how
    assert nearest_is_of_the_same_group(points, of)


@pytest.mark.parametrize("x", [np.zeros((0, 5)), np.ones((1, 5)), np.ones((3, 1)), np.ones((40, 5)), np.arange(40.0)[:, None]])
def test_few_equal_or_narrow_features_have_a_map_too(x: np.ndarray) -> None:
    points, _ = laid_out(x.astype(np.float32), seed=0)
    assert points.shape == (len(x), 2)
    assert np.isfinite(points).all()


def test_components_are_those_of_the_covariance() -> None:
    x, _ = groups(50)
    found = principal(x, 2)
    values = np.linalg.svd(x - x.mean(0), compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), values[:2], rtol=1e-4)
