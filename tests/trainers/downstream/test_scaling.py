"""Probes of many features: chunks and ranks change no answer, both ways to fit agree, and all agree with scikit-learn."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.downstream import attentive, features, guesses, linear, minibatches
from trainers.downstream.features import FeatureRows, Rank, extract
from trainers.downstream.guesses import Guesses
from trainers.downstream.knn import vote
from trainers.downstream.passes import Batch, left_out
from trainers.networks.backbones import seeded

CLASSES = 4
_GENERATOR = threading.Lock()
KNN = sys.modules["trainers.downstream.knn"]  # the package has a function of this name


def clouds(n: int, seed: int, width: int = 24, spread: float = 1.5) -> FeatureRows:
    """Correlated features around one centre a class, all above zero as a network's often are; ids in a mixed order."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(99)
    centres, mixing = fixed.standard_normal((CLASSES, width)), fixed.standard_normal((width, width))
    y = rng.integers(0, CLASSES, n)
    x = np.maximum((centres[y] + spread * rng.standard_normal((n, width))) @ mixing, 0).astype(np.float32)
    ids = np.sort(rng.integers(0, 2**64, n, dtype=np.uint64))
    return FeatureRows(ids, y, x)


def split(rows: FeatureRows, world: int) -> list[FeatureRows]:
    """The rows of each rank; the last has none where there are more than two."""
    of = np.arange(len(rows)) % max(1, world - (world > 2))
    parts = [FeatureRows(rows.ids[of == r], rows.y[of == r], rows.x[of == r]) for r in range(world)]
    return [part if len(part) else FeatureRows.of(np.zeros((0, 1), np.float32), np.zeros(0, np.int64)) for part in parts]


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """`ranks(world, work)`: what `work(rank)` returns on each of so many ranks, threads that exchange as processes do."""

    def run(world: int, work: Callable[[Rank], Any]) -> list[Any]:
        barrier, shelf = Barrier(world), [None] * world
        number: dict[int, int] = {}

        def gathered(items: list[Any], world: int) -> list[Any]:
            if world == 1:
                return items
            shelf[number[threading.get_ident()]] = items
            barrier.wait()
            found = [item for part in shelf for item in part]
            barrier.wait()
            return found

        def summed(values: torch.Tensor, world: int) -> torch.Tensor:
            return sum(gathered([values], world))

        for module in (features, linear, minibatches, guesses, KNN):
            for name, exchange in (("gathered", gathered), ("summed", summed)):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, exchange)

        def on(rank: int) -> Any:
            number[threading.get_ident()] = rank
            barrier.wait()
            return work(Rank(rank, world))

        with ThreadPoolExecutor(world) as pool:
            return list(pool.map(on, range(world)))

    return run


@contextmanager
def one_by_one(seed: int) -> Iterator[None]:
    """Seed torch's generator, of which the threads of a process have one, for one of them at a time."""
    with _GENERATOR, seeded(seed):
        yield


def plainly(train: FeatureRows, test: FeatureRows, k: int) -> np.ndarray:
    """The vote in plain numpy: nearest by cosine and, of equals, by id."""
    ours, theirs = (rows.x / np.linalg.norm(rows.x, axis=1, keepdims=True).clip(1e-12) for rows in (test, train))
    cosine, named = ours @ theirs.T, []
    for row in cosine:
        nearest = np.lexsort((train.ids, -row))[:k]
        named.append(np.bincount(train.y[nearest], np.exp(row[nearest].astype(np.float64) / 0.07), CLASSES).argmax())
    return np.array(named)


@settings(max_examples=40)
@given(
    n=st.integers(1, 60), m=st.integers(1, 20), k=st.integers(1, 30), chunk=st.integers(1, 70), queries=st.integers(1, 30),
    seed=st.integers(0, 99), many=st.booleans(),
)  # fmt: skip
def test_neighbours_are_the_same_in_any_chunks(n: int, m: int, k: int, chunk: int, queries: int, seed: int, many: bool) -> None:
    """Features of plus and minus one have exact cosines, many of which are equal: the id decides then."""
    rng = np.random.default_rng(seed)
    width = 64 if many else 4
    train, test = (
        FeatureRows(np.sort(rng.choice(10**6, size, replace=False).astype(np.uint64)), rng.integers(0, CLASSES, size), x)
        for size, x in ((size, rng.choice(np.float32([-1, 1]), (size, width))) for size in (n, m))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "CHUNK_NUMBERS", chunk * width)
        patch.setattr(KNN, "QUERIES", queries)
        assert vote(train, test, CLASSES, k, Rank()).named.tolist() == plainly(train, test, k).tolist()


def test_neighbours_of_a_collapsed_network_are_those_of_the_lowest_ids() -> None:
    train = FeatureRows(np.arange(300, dtype=np.uint64), np.repeat([2, 1], [20, 280]), np.ones((300, 4), np.float32))
    assert vote(train, clouds(5, 0, 4), CLASSES, 20, Rank()).named.tolist() == [2] * 5


def test_neighbours_and_probe_are_those_of_scikit_learn_on_5000() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    train, test = clouds(5000, 0, spread=2.5), clouds(1000, 1, spread=2.5)
    theirs = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda far: np.exp((1 - far) / 0.07))
    assert (vote(train, test, CLASSES, 20, Rank()).named == theirs.fit(train.x, train.y).predict(test.x)).all()

    scale = StandardScaler().fit(train.x)
    regression = LogisticRegression(C=1 / (1e-3 * len(train)), tol=1e-6, max_iter=500)
    named = regression.fit(scale.transform(train.x), train.y).predict(scale.transform(test.x))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "DECAYS", (1e-3,))
        patch.setattr(minibatches, "EPOCHS", 8)
        for many, how, equal in ((10**9, "full batch", 0.998), (1, "minibatches", 0.97)):
            found, fit = linear.classify(train, test, CLASSES, 0, Rank(), many)
            assert fit == how
            assert (found.named == named).mean() >= equal
            assert found.accuracy == pytest.approx((named == test.y).mean(), abs=0.012)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_find_together_what_one_finds_alone(world: int, ranks: Callable[..., list[Any]]) -> None:
    train, test = clouds(300, 0, 8), clouds(101, 1, 8)
    sides = list(zip(split(train, world), split(test, world)))

    def alone(many: int) -> list[Guesses]:
        return [vote(train, test, CLASSES, 9, Rank()), linear.classify(train, test, CLASSES, 0, Rank(), many)[0]]

    def together(rank: Rank, many: int) -> list[Guesses]:
        mine = sides[rank.number]
        parts = [vote(*mine, CLASSES, 9, rank), linear.classify(*mine, CLASSES, 0, rank, many)[0]]
        return [part.together(world) for part in parts]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minibatches, "LEAST_STEPS", 40)
        patch.setattr(minibatches, "BATCH", 64)
        for many in (10**9, 1):
            expected = alone(many)
            for found in ranks(world, lambda rank, many=many: together(rank, many)):
                for one, other in zip(found, expected, strict=True):
                    assert np.array_equal(one.ids, other.ids)
                    assert np.array_equal(one.y, other.y)
                    assert np.array_equal(one.named, other.named)
                    np.testing.assert_allclose(one.sure, other.sure, atol=1e-4)


def test_constant_features_are_no_better_than_chance_and_break_nothing() -> None:
    rows = FeatureRows(np.arange(200, dtype=np.uint64), np.arange(200) % CLASSES, np.full((200, 6), 3, np.float16))
    for many in (10**9, 1):
        found, _ = linear.classify(rows, rows, CLASSES, 0, Rank(), many)
        assert np.isfinite(found.sure).all()
        assert found.accuracy == pytest.approx(1 / CLASSES)


def test_an_attentive_probe_finds_what_an_average_hides(ranks: Callable[..., list[Any]]) -> None:
    """One of nine positions tells the class, by the sign of what another channel marks; over all positions it cancels out."""

    def maps(n: int, seed: int) -> FeatureRows:
        rng = np.random.default_rng(seed)
        y, place = rng.integers(0, 2, n), rng.integers(0, 9, n)
        x = 0.3 * rng.standard_normal((n, 9, 8)).astype(np.float32)
        x[np.arange(n), place, 0] += 3
        x[np.arange(n), place, 1] = 2 * y - 1
        x[:, :, 1] -= np.where(np.arange(9) == place[:, None], 0, (2 * y - 1)[:, None] / 8)
        return FeatureRows(np.arange(n, dtype=np.uint64), y, x.astype(np.float16))

    train, test = maps(400, 0), maps(200, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minibatches, "LEAST_STEPS", 160)
        patch.setattr(attentive, "RATE", 2e-2)
        state = torch.get_rng_state()
        found = attentive.look(train, test, 2, 0, Rank())
        assert torch.equal(torch.get_rng_state(), state)
        sides = list(zip(split(train, 3), split(test, 3)))
        patch.setattr(minibatches, "LEAST_STEPS", 4)
        alone = attentive.look(train, test, 2, 0, Rank())
        patch.setattr(attentive, "seeded", one_by_one)
        for part in ranks(3, lambda rank: attentive.look(*sides[rank.number], 2, 0, rank).together(3)):
            np.testing.assert_allclose(part.sure, alone.sure, atol=1e-3)
    assert found.accuracy > 0.9
    averaged = FeatureRows(train.ids, train.y, train.x.mean(1)), FeatureRows(test.ids, test.y, test.x.mean(1))
    assert linear.classify(*averaged, 2, 0, Rank())[0].accuracy < 0.65


def test_many_features_are_kept_in_half_the_bytes_and_in_order(
    crops: Callable[[int, int], np.ndarray], recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, ids = torch.from_numpy(crops(20, 32)), np.random.default_rng(0).permutation(20).astype(np.uint64)
    batches = [Batch(ids[i : i + 6], np.arange(i, min(20, i + 6)), images[i : i + 6]) for i in range(0, 20, 6)]
    network = torch.nn.Sequential(torch.nn.AvgPool2d(16), torch.nn.Flatten())
    full = extract({"it": network}, batches, recipe("rotation"), total=20)
    monkeypatch.setattr(features, "MANY", 20 * 12)
    half = extract({"it": network}, batches, recipe("rotation"), total=20)
    assert (full.x["it"].dtype, half.x["it"].dtype, half.x["histogram"].dtype) == (np.float32, np.float16, np.float16)
    assert full.ids.tolist() == half.ids.tolist() == list(range(20))
    assert ids[full.y].tolist() == list(range(20))
    np.testing.assert_allclose(half.x["it"], full.x["it"], rtol=1e-3, atol=1e-4)


def test_the_most_wrong_are_the_surest_and_confusions_count_every_image() -> None:
    found = Guesses(
        np.array([5, 1, 2, 3], np.uint64), np.array([0, 0, 1, 2]), np.array([1, 1, 1, 0]), np.float32([0.6, 0.6, 0.9, 0.8])
    )
    assert found.ids[found.most_wrong(9)].tolist() == [3, 1, 5]
    assert found.confusion(3).tolist() == [[0, 2, 0], [0, 1, 0], [1, 0, 0]]
    assert found.accuracy == 0.25


def test_what_was_left_out_is_counted_by_set_and_reason() -> None:
    rows = [{"set": "test", "reason": "it has no label"}, {"set": "test", "reason": "cut off"}, {"set": "train", "reason": "x"}]
    assert left_out(rows) == {"train": {"unusable": 1, "unlabelled": 0}, "test": {"unusable": 1, "unlabelled": 1}}
