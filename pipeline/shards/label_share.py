"""A share of a corpus's labels: a view of the samples that keep theirs, or a mixture of these and of others without."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from math import ceil

import numpy as np

from pipeline.errors import UserError
from pipeline.ordering.mixture import Portion
from pipeline.shards.corpus import Corpus


def select_share(corpus: Corpus, share: float, seed: int) -> Corpus:
    """A view with the same share of every class: of its n samples, the ceil(share * n) with the lowest keyed hash.

    Samples without a label count as a class of their own, so their share stays the same. With one seed a smaller share is a
    subset of a larger one; shards and their order make no difference.

    Args:
        corpus: the corpus.
        share: above 0, at most 1.
        seed: 0 or above, below 2**64.

    Raises:
        UserError: the labels are of no use, see `disagreement`.
    """
    return corpus.select(corpus.rows_of(_share(corpus, share, seed)[0]))


def with_labelled(corpus: Corpus, share: float, seed: int, part: float | None = None) -> Corpus:
    """The same samples as a mixture of two portions: those whose labels are known, and the others, whose labels are hidden.

    The known ones are those of `select_share` that have a label. No sample's id or drawing changes.

    Args:
        corpus, share, seed: as of `select_share`.
        part: the part of an epoch that the known ones make up; 1 leaves the others out; None takes their part of the corpus.

    Raises:
        UserError: there are no labels, or they are of no use.
    """
    numbers, labels = _share(corpus, share, seed)
    known = numbers[labels >= 0]
    if not len(known):
        raise UserError(
            "corpus.labelled: the shards have no labels: pack them with `--labels folder`, or give samples a `cls` member"
        )
    if part == 1 or len(known) == corpus.samples:
        return corpus.select(corpus.rows_of(known))
    rest = np.setdiff1d(np.arange(corpus.samples), known, assume_unique=True)
    n, part = len(corpus.urls), len(known) / corpus.samples if part is None else part
    portions = (Portion("labelled", part, n), Portion("unlabelled", 1 - part, n))
    return replace(corpus.in_two_parts(corpus.rows_of(known), corpus.rows_of(rest)), portions=portions, hidden=n)


def _share(corpus: Corpus, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the samples of `select_share`, ascending, and their labels."""
    if not 0 < share <= 1:
        raise UserError(f"a share of {share} of the labels: it must be above 0 and at most 1")
    if corpus.disagreement:
        raise UserError(f"the corpus has no labels to take a share of: {corpus.disagreement}")
    labels, hashes = _labels_and_hashes(corpus, seed)
    order = np.lexsort((hashes, labels))
    firsts, sizes = np.unique(labels[order], return_index=True, return_counts=True)[1:]
    kept = np.sort(np.concatenate([order[:0], *(order[f : f + ceil(round(share * n, 6))] for f, n in zip(firsts, sizes))]))
    return kept, labels[kept]


def _labels_and_hashes(corpus: Corpus, seed: int) -> tuple[np.ndarray, np.ndarray]:
    secret = seed.to_bytes(8, "little")

    def hash_of(key: str) -> int:
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8, key=secret).digest(), "little")

    labels, hashes = np.empty(corpus.samples, np.int64), np.empty(corpus.samples, np.uint64)
    start = 0
    for i, count in enumerate(corpus.counts):
        if count == 0:
            continue
        members, here = corpus.members(i), slice(start, start + int(count))
        labels[here] = members.labels
        hashes[here] = np.fromiter(map(hash_of, members.keys), np.uint64, len(members))
        start = here.stop
    return labels, hashes
