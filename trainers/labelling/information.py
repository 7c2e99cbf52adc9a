"""How much two labellings of the same images tell of each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.shards.annotations import Annotation


def counted_with_class(pairs: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Add images to the counts that `mutual_information` takes, each pair once.

    Args:
        pairs: int64 (n, 3), the counts so far.
        labels: (m,): the first label of each image.
        classes: (m,): the second; below 0 an image has none, and is not counted.
    """
    more = np.stack([labels, classes, np.ones_like(labels)], 1)[classes >= 0].astype(np.int64)
    both = np.concatenate([pairs, more])
    kinds, which = np.unique(both[:, :2], axis=0, return_inverse=True)
    counts = np.bincount(which.ravel(), weights=both[:, 2], minlength=len(kinds)).astype(np.int64)
    return np.concatenate([kinds, counts[:, None]], 1)


def mutual_information(pairs: np.ndarray) -> dict[str, float]:
    """The mutual information of two labellings.

    Args:
        pairs: int64 (n, 3), rows of a label of each labelling and of how many images have both.

    Returns:
        `classes`: labels of the second; `images`; `nats`: the mutual information; `normalised`: the same divided by the mean of
        the two entropies, 0 for independent labellings and 1 for equal ones; `purity`: the share of images that have the most
        frequent second label among those of their first.
    """
    counts = pairs[:, 2].astype(np.float64)
    total = counts.sum()
    first, second = (np.unique(pairs[:, n], return_inverse=True)[1].ravel() for n in (0, 1))
    sizes = [np.bincount(which, weights=counts) / total for which in (first, second)]
    joint = counts / total
    nats = float((joint * np.log(joint / (sizes[0][first] * sizes[1][second]))).sum())
    entropies = [float(-(share * np.log(share)).sum()) for share in sizes]
    mean = sum(entropies) / 2
    most = np.zeros(len(sizes[0]))
    np.maximum.at(most, first, joint)
    return {
        "classes": float(len(sizes[1])),
        "images": float(total),
        "nats": max(0.0, nats),
        "normalised": min(1.0, max(0.0, nats / mean)) if mean > 0 else 1.0,
        "purity": float(most.sum()),
    }


class LabelTally:
    """Counts what tables of labels tell, one table after another.

    Args:
        labels: how many there may be.
        column: a column whose mean is wanted.

    Attributes:
        columns: those of the tables that are read.
        sizes: int64 (labels,): images of each label.
    """

    def __init__(self, labels: int, column: str) -> None:
        self.columns = ["label", column, "class", "row", "id"]
        self.sizes = np.zeros(labels, np.int64)
        self._column, self._sum = column, 0.0
        self._by_class = np.zeros((0, 3), np.int64)
        self._by_before: np.ndarray | None = None

    def add(self, table: pa.Table, before: Annotation | None, shard: int) -> None:
        """Count a table.

        Args:
            table: its `columns`.
            before: labels that the images had before, if there are some.
            shard: the shard's place in the corpus.
        """
        labels, classes = table.column("label").to_numpy(), table.column("class").fill_null(-1).to_numpy()
        self.sizes += np.bincount(labels, minlength=len(self.sizes))
        self._sum += float(table.column(self._column).to_numpy().sum(dtype=np.float64))
        self._by_class = counted_with_class(self._by_class, labels, classes)
        if before is not None:
            numbers = before.labels(shard, table.column("row").to_numpy(), table.column("id").to_pylist())
            counted = np.zeros((0, 3), np.int64) if self._by_before is None else self._by_before
            self._by_before = counted_with_class(counted, labels, np.array(numbers, np.int64))

    @property
    def images(self) -> int:
        """How many images were counted."""
        return int(self.sizes.sum())

    @property
    def mean(self) -> float:
        """The mean of the column."""
        return self._sum / max(1, self.images)

    def information(self) -> dict[str, Any]:
        """What the labels have in common with those of the shards, `labels`, None without such; and with those `before`."""
        before = {} if self._by_before is None else {"before": _shared(self._by_before)}
        return {"labels": _shared(self._by_class), **before}


def _shared(pairs: np.ndarray) -> dict[str, float] | None:
    return mutual_information(pairs) if len(pairs) else None
