"""The probes separate separable features, and reach chance on noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from trainers.downstream import colour_histogram, knn, linear, linear_probe

CLASSES, WIDTH = 5, 24
PROBES = {
    "linear": lambda *sets: linear_probe(*sets, classes=CLASSES, seed=0),
    "knn": lambda *sets: knn(*sets, classes=CLASSES),
}


def clouds(n: int, seed: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features around one centre a class, and labels."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((CLASSES, WIDTH)) * 3
    label = rng.integers(0, CLASSES, n)
    return (centres[label] + spread * rng.standard_normal((n, WIDTH))).astype(np.float32), label


@pytest.mark.parametrize("probe", PROBES)
def test_separable_classes_are_told_apart(probe: str) -> None:
    assert PROBES[probe](*clouds(400, 0), *clouds(300, 1)) > 0.99


@pytest.mark.parametrize("probe", PROBES)
def test_shuffled_labels_give_chance(probe: str) -> None:
    x, y = clouds(400, 0)
    shuffled = np.random.default_rng(5).permutation(y)
    assert PROBES[probe](x, shuffled, *clouds(1000, 1)) == pytest.approx(1 / CLASSES, abs=0.12)


@pytest.mark.parametrize("probe", PROBES)
def test_the_answer_is_the_same_every_time_and_for_tensors(probe: str) -> None:
    sets = (*clouds(200, 0, spread=6.0), *clouds(200, 1, spread=6.0))
    state = torch.get_rng_state()
    first, again = PROBES[probe](*sets), PROBES[probe](*sets)
    assert first == again == PROBES[probe](*(torch.from_numpy(part) for part in sets))
    assert 1 / CLASSES < first < 1
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("probe", PROBES)
def test_nothing_to_learn_from_is_refused(probe: str) -> None:
    x, y = clouds(10, 0)
    with pytest.raises(UserError, match="found 0"):
        PROBES[probe](x[:0], y[:0], x, y)


def test_the_linear_probe_does_not_depend_on_the_features_units() -> None:
    (x, y), (z, w) = clouds(300, 0, spread=6.0), clouds(300, 1, spread=6.0)
    scale, shift = np.linspace(0.01, 100, WIDTH, dtype=np.float32), np.float32(3)
    plain = linear_probe(x, y, z, w, CLASSES, seed=0)
    assert plain > 0.7
    assert linear_probe(x * scale + shift, y, z * scale + shift, w, CLASSES, seed=0) == pytest.approx(plain, abs=0.02)


def test_the_linear_probe_stands_constant_features_and_one_label_a_class() -> None:
    (x, y), (z, w) = clouds(300, 0), clouds(300, 1)
    x[:, 3], z[:, 3] = 1, 2
    rows = [int(np.flatnonzero(y == label)[0]) for label in range(CLASSES)]
    assert linear_probe(x[rows], y[rows], z, w, CLASSES, seed=0) > 0.6


def test_the_linear_probe_chooses_its_decay_so_that_noise_does_not_win(monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = clouds(n, seed, spread=8.0)
        noise = np.random.default_rng(seed + 50).standard_normal((n, WIDTH)).astype(np.float32)
        return np.concatenate([x, noise], axis=1), y

    chosen = linear_probe(*noisy(200, 0), *noisy(500, 1), CLASSES, seed=0)
    monkeypatch.setattr(linear, "DECAYS", linear.DECAYS[-1:])
    assert chosen > linear_probe(*noisy(200, 0), *noisy(500, 1), CLASSES, seed=0) + 0.08


def test_neighbours_vote_by_cosine_with_weights() -> None:
    x = np.array([[1, 0], [0.9, 0.5], [0.9, -0.5], [0, 1]], np.float32) * np.array([[1], [5], [5], [1]], np.float32)
    y = np.array([0, 1, 1, 2])
    probe = np.array([[10, 0]], np.float32)
    assert knn(x, y, probe, [0], classes=3, neighbours=1) == 1
    assert knn(x, y, probe, [0], classes=3, neighbours=3, temperature=0.01) == 1
    assert knn(x, y, probe, [1], classes=3, neighbours=3, temperature=10) == 1
    assert knn(x, y, probe, [1], classes=3, neighbours=99, temperature=10) == 1


def test_neighbours_are_counted_over_all_chunks() -> None:
    (x, y), (z, w) = clouds(300, 0, spread=6.0), clouds(2500, 1, spread=6.0)
    parts = [knn(x, y, z[i : i + 500], w[i : i + 500], CLASSES) for i in range(0, 2500, 500)]
    assert knn(x, y, z, w, CLASSES) == pytest.approx(np.mean(parts))


def test_a_colour_histogram_is_that_of_numpy(crops) -> None:
    images = crops(3, 32)
    found = colour_histogram(images)
    for image, row in zip(images, found, strict=True):
        counts, _ = np.histogramdd(image.reshape(-1, 3), bins=8, range=[(0, 256)] * 3)
        np.testing.assert_allclose(row, np.sqrt(counts.ravel() / 1024), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)


def test_a_colour_histogram_tells_photos_apart_but_not_their_places(crops) -> None:
    images, photo = crops(160, 32), np.arange(160) % 4
    x = colour_histogram(images)
    assert linear_probe(x[:120], photo[:120], x[120:], photo[120:], 4, seed=0) > 0.7
    np.testing.assert_array_equal(colour_histogram(images[:, ::-1]), x)
