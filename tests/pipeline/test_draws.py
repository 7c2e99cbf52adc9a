"""A random number is a function of (seed, epoch, sample, name), and the generator is the published one."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.draws import Draws, hash64, permutation, philox4x32, sample_id

KEYS = 10_000
IDS = np.array([sample_id(f"photos/{n:05d}") for n in range(KEYS)], np.uint64)

GOLDEN_PERMUTATION = [4, 3, 1, 5, 8, 0, 7, 6, 9, 2]
GOLDEN_ID = 2465225462173413321
GOLDEN_HASH = 3018434661807836164
GOLDEN_WORDS = "657bc4fb2d4775ea"

id_lists = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20)


def chi_squared_bound(bins: int) -> float:
    """What chi-squared of uniform counts exceeds once in some ten million times (Wilson and Hilferty's cube)."""
    free = bins - 1
    return free * (1 - 2 / (9 * free) + 5.2 * (2 / (9 * free)) ** 0.5) ** 3


def chi_squared(values: np.ndarray, bins: int) -> float:
    expected = len(values) / bins
    return float(((np.bincount(values, minlength=bins) - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_answers(counter: list[int], key: tuple[int, int], expected: list[int]) -> None:
    """Known-answer vectors of Random123, kat_vectors, philox4x32 10."""
    assert philox4x32(np.array(counter, np.uint32), key).tolist() == expected
    many = np.repeat(np.array(counter, np.uint32)[:, None], 3, axis=1)
    assert philox4x32(many, key).T.tolist() == [expected] * 3


@given(ids=id_lists, seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 1000), data=st.data())
def test_a_sample_draws_the_same_whatever_the_batch_and_its_order(
    ids: list[int], seed: int, epoch: int, data: st.DataObject
) -> None:
    order = data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=30))
    together = Draws(seed, epoch, np.array(ids, np.uint64))
    others = Draws(seed, epoch, np.array([ids[i] for i in order], np.uint64))
    for draws in (others, together.of(np.array(order))):
        for shape in ((), (3,), (2, 5)):
            whole, part = together.stream("s").uniform("x", shape=shape), draws.stream("s").uniform("x", shape=shape)
            assert np.array_equal(whole[order], part)
        high = np.arange(1, len(ids) + 1)
        assert np.array_equal(together.stream("s").integers("k", high)[order], draws.stream("s").integers("k", high[order]))


def test_seeds_epochs_streams_names_and_samples_all_matter() -> None:
    first = Draws(1, 0, IDS[:50]).stream("crop").words("area", 4)
    others = {
        "seed": Draws(2, 0, IDS[:50]).stream("crop").words("area", 4),
        "epoch": Draws(1, 1, IDS[:50]).stream("crop").words("area", 4),
        "stream": Draws(1, 0, IDS[:50]).stream("rotation").words("area", 4),
        "name": Draws(1, 0, IDS[:50]).stream("crop").words("ratio", 4),
        "sample": Draws(1, 0, IDS[50:100]).stream("crop").words("area", 4),
    }
    for what, words in others.items():
        assert not (words == first).any(), what
    assert len(np.unique(first)) == first.size


def test_asking_for_more_numbers_does_not_change_the_first() -> None:
    stream = Draws(0, 0, IDS[:7]).stream("s")
    assert np.array_equal(stream.words("x", 9)[:, :3], stream.words("x", 3))
    assert stream.words("x", 9).shape == (7, 9)


def test_no_samples_draw_nothing() -> None:
    stream = Draws(0, 0, IDS[:0]).stream("s")
    assert stream.uniform("x", shape=(4, 3)).shape == (0, 4, 3)
    assert stream.integers("x", 5).shape == (0,)


@pytest.mark.parametrize("high", [2, 3, 4, 24, 100, 1000])
def test_integers_are_uniform(high: int) -> None:
    values = Draws(5, 0, IDS).stream("s").integers("k", high)
    assert values.dtype == np.int64
    assert 0 <= values.min() <= values.max() < high
    assert chi_squared(values, high) < chi_squared_bound(high)


def test_uniforms_are_uniform_independent_of_each_other_and_within_bounds() -> None:
    values = Draws(5, 3, IDS).stream("s").uniform("u", 2.0, 4.0, shape=(2,))
    assert values.shape == (KEYS, 2)
    assert values.min() > 2.0
    assert values.max() < 4.0
    cells = ((values - 2.0) * 5).astype(int)
    assert chi_squared(cells[:, 0] * 10 + cells[:, 1], 100) < chi_squared_bound(100)


def test_a_bound_that_differs_by_sample_is_kept_by_each() -> None:
    high = np.arange(1, KEYS + 1)
    values = Draws(0, 0, IDS).stream("s").integers("k", high)
    assert ((values >= 0) & (values < high)).all()
    assert values[0] == 0
    assert len(np.unique(values // (high / 10))) >= 10


@given(n=st.integers(0, 300), part=st.integers(0, 2**40))
def test_a_permutation_holds_every_number_once(n: int, part: int) -> None:
    assert sorted(permutation(n, "p", part).tolist()) == list(range(n))


def test_permutations_are_pinned_and_differ_by_name_and_length() -> None:
    assert permutation(10, "shards", 0, 0).tolist() == GOLDEN_PERMUTATION
    assert permutation(10, "shards", 0, 1).tolist() != GOLDEN_PERMUTATION
    assert permutation(10, "window", 0, 0).tolist() != GOLDEN_PERMUTATION
    assert permutation(11, "shards", 0, 0).tolist() != [*GOLDEN_PERMUTATION, 10]


def test_numbers_are_pinned() -> None:
    """These may change only with the order of training and every label: a new major version."""
    assert sample_id("n01440764/n01440764_10026") == GOLDEN_ID
    assert hash64("shards", 0, 0) == GOLDEN_HASH
    words = Draws(1234, 5, IDS[:100]).stream("crop").words("area", 10)
    assert hashlib.sha256(words.astype("<u4").tobytes()).hexdigest()[:16] == GOLDEN_WORDS


def test_a_hash_tells_its_parts_apart_and_takes_numpy_integers() -> None:
    assert len({hash64("a", 1), hash64("a", "1"), hash64("a1"), hash64("a", 1, ""), hash64("1", "a"), hash64('a", 1')}) == 6
    assert hash64("a", np.int64(7), np.uint8(2)) == hash64("a", 7, 2)
    with pytest.raises(TypeError):
        hash64("a", 1.5)  # type: ignore[arg-type]


def test_ids_of_any_key_can_be_had() -> None:
    keys = ["a", "a/b", "", "ä/日本", "bad \udcff bytes", "a" * 5000]
    assert len({sample_id(key) for key in keys}) == len(keys)
