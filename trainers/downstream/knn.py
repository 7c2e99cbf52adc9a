"""Classifies by a vote of the nearest neighbours: how well frozen features do without any fitting."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import UserError
from trainers.downstream.features import FeatureRows, Rank
from trainers.downstream.guesses import Guesses
from trainers.learning.ranks import gathered

TEMPERATURE = 0.07
QUERIES = 1024
"""Test samples of each rank whose similarities to a chunk of training samples are held at once."""

_MOST = 4  # candidates of a chunk, in multiples of k, that are sorted without a selection


def knn(
    train_x: np.ndarray | Tensor,
    train_y: np.ndarray | Tensor,
    test_x: np.ndarray | Tensor,
    test_y: np.ndarray | Tensor,
    classes: int,
    neighbours: int = 20,
    temperature: float = TEMPERATURE,
) -> float:
    """Accuracy of a weighted vote of the nearest neighbours, see `vote`.

    Args:
        train_x: features, float (n, d).
        train_y: labels, integer (n,), 0 <= label < classes.
        test_x: features, float (m, d).
        test_y: labels, integer (m,).
        classes: number of classes.
        neighbours: k; the whole training set where that is smaller.
        temperature: of the vote.

    Raises:
        UserError: no training or no test sample.
    """
    if not len(train_x) or not len(test_x):
        raise UserError(f"downstream: neighbours need training and test samples, found {len(train_x)} and {len(test_x)}")
    guesses = vote(FeatureRows.of(train_x, train_y), FeatureRows.of(test_x, test_y), classes, neighbours, Rank(), temperature)
    return float((guesses.named == np.asarray(test_y)).mean())


def vote(
    train: FeatureRows, test: FeatureRows, classes: int, neighbours: int, rank: Rank, temperature: float = TEMPERATURE
) -> Guesses:
    """Classify a rank's test samples by a weighted vote (Wu et al. 2018, "Unsupervised feature learning via non-parametric
    instance discrimination", section 3.4); to be called on every rank.

    Protocol: features are scaled to length 1, nothing else; each of the k training samples of greatest cosine s (of equals, that
    of the lower id) votes for its class with exp(s / temperature); ties go to the lower class. No augmentation, no randomness.
    Training features stay on their ranks: the test features go round, each rank looks for their nearest among its own, chunk by
    chunk, and the lists are merged. So the result is that of one process, and memory holds a chunk's similarities.

    Args:
        train: this rank's training features.
        test: this rank's test features.
        classes: number of classes.
        neighbours: k; the whole training set where that is smaller.
        rank: this rank.
        temperature: of the vote.
    """
    named, sure = np.zeros(len(test), np.int64), np.zeros(len(test), np.float32)
    rounds = max(gathered([-(-len(test) // QUERIES)], rank.world))
    for first in range(0, rounds * QUERIES, QUERIES):
        mine = F.normalize(test.some(slice(first, first + QUERIES), rank.device), dim=1)
        asked = gathered([mine.cpu()], rank.world) if rank.world > 1 else [mine]
        found = [_closest(queries.to(rank.device), train, neighbours) for queries in asked]
        lists = [of_rank[rank.number] for of_rank in gathered([found], rank.world)]
        best = Candidates.best(lists, neighbours)
        weights = np.exp(best.cosine.astype(np.float64) / temperature)
        votes = np.bincount(best.query * classes + best.label, weights, len(mine) * classes).reshape(-1, classes)
        here = slice(first, first + len(mine))
        named[here] = votes.argmax(1)
        sure[here] = votes.max(1, initial=0) / votes.sum(1).clip(min=np.finfo(np.float64).tiny)
    return Guesses(test.ids, test.y, named, sure)


@dataclass(frozen=True)
class Candidates:
    """Training samples that may be among the nearest of some queries, in order of query, similarity and id.

    Args:
        query: int64 (c,): for which query.
        cosine: float32 (c,): its similarity.
        id: uint64 (c,): the training sample.
        label: int64 (c,): its label.
    """

    query: np.ndarray
    cosine: np.ndarray
    id: np.ndarray
    label: np.ndarray

    @classmethod
    def best(cls, lists: list[Candidates], k: int) -> Candidates:
        """The k nearest of each query among several lists: of greatest cosine and, of equals, of the lowest id."""
        columns = [np.concatenate([getattr(one, name) for one in lists]) for name in ("query", "cosine", "id", "label")]
        query, cosine, ids, _ = columns
        order = np.lexsort((ids, -cosine, query))
        query = query[order]
        nearest = np.arange(len(query)) - np.searchsorted(query, query) < k
        return cls(*(column[order][nearest] for column in columns))

    def limits(self, queries: int, k: int) -> np.ndarray:
        """float32 (queries,): the least similarity that is still among the k nearest; minus infinity where there are fewer."""
        limits, counts = np.full(queries, -np.inf, np.float32), np.bincount(self.query, minlength=queries)
        full = counts >= k
        limits[full] = self.cosine[np.cumsum(counts)[full] - 1]
        return limits


def _closest(queries: Tensor, train: FeatureRows, k: int) -> Candidates:
    """The k nearest of each query, float32 (q, d) of length 1, among a rank's training samples."""
    none = np.zeros(0, np.int64)
    best = Candidates(none, none.astype(np.float32), none.astype(np.uint64), none)
    for here, x in train.chunks(queries.device) if len(queries) else ():
        cosine = queries @ F.normalize(x, dim=1).T
        limits = torch.from_numpy(best.limits(len(queries), k)).to(queries.device)[:, None]
        query, row = _hits(cosine, limits, k).nonzero(as_tuple=True)
        columns = (query.cpu().numpy(), cosine[query, row].cpu().numpy(), row.cpu().numpy())
        near = Candidates(*columns[:2], train.ids[here][columns[2]], train.y[here][columns[2]])
        best = Candidates.best([best, near], k)
    return best


def _hits(cosine: Tensor, limits: Tensor, k: int) -> Tensor:
    """Which similarities, (q, n) in order of the ids, reach the limits (q, 1); of many, only each query's k nearest."""
    hits = cosine >= limits
    if int(hits.sum()) > _MOST * k * len(cosine):
        last = cosine.topk(min(k, cosine.shape[1]), dim=1).values[:, -1:]
        equal = cosine == last
        hits = (cosine > last) | (equal & (equal.cumsum(1) <= k))  # of a collapsed network's features all are equal
    return hits
