"""Random numbers that depend on (seed, epoch, sample, name) and nothing else: the counter-based generator Philox4x32-10.

There is no generator state: each number is a function of these four, so batches, workers, retries and order cannot change it.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator

import numpy as np

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox4x32(counter: np.ndarray, key: tuple[int, int], rounds: int = 10) -> np.ndarray:
    """Compute Philox4x32 blocks.

    Args:
        counter: uint32 of shape (4, ...): the four counter words.
        key: two 32-bit words.
        rounds: 10 in the published generator.

    Returns:
        uint32 of the counter's shape: four random words for each counter.
    """
    c0, c1, c2, c3 = (word.astype(np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0), p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)


def hash64(*parts: int | str) -> int:
    """Hash a list of integers and strings to a 64-bit number, the same on every machine and in every version."""
    text = json.dumps([part if isinstance(part, str) else operator.index(part) for part in parts])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def sample_id(key: str) -> int:
    """The 64-bit hash of a sample key."""
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def permutation(n: int, *parts: int | str) -> np.ndarray:
    """A permutation of 0..n-1 (int64) that depends on n and `parts` only."""
    counter = np.zeros((4, -(-n // 2)), np.uint32)
    counter[0] = np.arange(counter.shape[1])
    words = philox4x32(counter, _split(hash64(*parts))).T.reshape(-1).view(np.uint64)[:n]
    return np.argsort(words, kind="stable")


def _split(key: int) -> tuple[int, int]:
    return key & 0xFFFFFFFF, key >> 32


class Draws:
    """The random numbers of one epoch for n samples, divided into named streams.

    Args:
        seed: the recipe's seed.
        epoch: number of the epoch, from 0.
        ids: uint64 (n,): the samples' ids, see `sample_id`.
    """

    def __init__(self, seed: int, epoch: int, ids: np.ndarray) -> None:
        self._seed, self._epoch, self._ids = seed, epoch, np.asarray(ids, np.uint64)

    def of(self, rows: np.ndarray) -> Draws:
        """The random numbers of some of the samples, the same as here."""
        return Draws(self._seed, self._epoch, self._ids[rows])

    def stream(self, name: str) -> Stream:
        """The random numbers of one task or stage; streams of different names are independent."""
        return Stream((self._seed, self._epoch, name), self._ids)


class Stream:
    """Random numbers for n samples, drawn under a name for each parameter, so that a new parameter never changes an old one."""

    def __init__(self, key: tuple[int, int, str], ids: np.ndarray) -> None:
        self._key, self._ids = key, ids
        self.n = len(ids)

    def words(self, what: str, count: int) -> np.ndarray:
        """uint32 (n, count) of random words under the name `what`."""
        blocks = -(-count // 4)
        counter = np.zeros((4, self.n, blocks), np.uint32)
        counter[0] = (self._ids & _LOW)[:, None]
        counter[1] = (self._ids >> _SHIFT)[:, None]
        counter[2] = np.arange(blocks)
        return (
            philox4x32(counter, _split(hash64("draws", *self._key, what)))
            .transpose(1, 2, 0)
            .reshape(self.n, 4 * blocks)[:, :count]
        )

    def uniform(self, what: str, low: float = 0.0, high: float = 1.0, shape: tuple[int, ...] = ()) -> np.ndarray:
        """float64 (n, *shape), uniform between `low` and `high` (32 random bits)."""
        unit = (self.words(what, math.prod(shape)).astype(np.float64) + 0.5) * 2.0**-32
        return (low + (high - low) * unit).reshape(self.n, *shape)

    def integers(self, what: str, high: int | np.ndarray, shape: tuple[int, ...] = ()) -> np.ndarray:
        """int64 (n, *shape), uniform in 0..high-1; `high` (at most 2^31) is a number or an array that broadcasts to the result.

        Computed by multiplying a 32-bit word by `high`, so the odds of two values differ by at most high / 2^32.
        """
        words = self.words(what, math.prod(shape)).reshape(self.n, *shape).astype(np.uint64)
        return ((words * np.asarray(high, np.uint64)) >> _SHIFT).astype(np.int64)
