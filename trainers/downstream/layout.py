"""A map of features: a place in the plane for each, near those that are like it."""

from __future__ import annotations

import numpy as np

from pipeline.errors import installing

_FIRST = 50
"""Principal components that t-SNE gets, which suppresses noise (van der Maaten & Hinton 2008, section 4.2)."""

_FEWEST = 8


def laid_out(x: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    """Lay features out in the plane by t-SNE (van der Maaten & Hinton, "Visualizing data using t-SNE", JMLR 2008).

    Without scikit-learn, or of fewer than 8 features, these are the first two principal components.

    Args:
        x: float32 (n, d).
        seed: of t-SNE.

    Returns:
        float32 (n, 2), and the method in words.
    """
    components = principal(x, _FIRST)
    if len(x) < _FEWEST:
        return components[:, :2], f"principal components, as {len(x)} features are too few for t-SNE"
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        return components[:, :2], f"principal components, as scikit-learn is not installed: {installing('report')} for t-SNE"
    if not components.any():
        return components[:, :2], "one point, as all features are equal"
    tsne = TSNE(perplexity=min(30.0, (len(x) - 1) / 3), init=components[:, :2] / components[:, 0].std() * 1e-4, random_state=seed)
    return tsne.fit_transform(components).astype(np.float32), "t-SNE"


def principal(x: np.ndarray, count: int) -> np.ndarray:
    """The first principal components of float32 (n, d): float32 (n, min(count, d)), zeros beyond the rank."""
    if not len(x):
        return np.zeros((0, 2), np.float32)
    centred = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    found = centred @ vectors[:, ::-1][:, :count]
    if found.shape[1] < 2:
        found = np.pad(found, ((0, 0), (0, 2 - found.shape[1])))
    scale = np.abs(centred).max(initial=0)
    return np.where(np.abs(found) > 1e-9 * scale, found, 0).astype(np.float32)
