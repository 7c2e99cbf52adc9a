"""How much two labellings of the same images tell of each other."""

from __future__ import annotations

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


class LabelComparison:
    """Compares tables of labels with the labels that the same images had before, one table after another.

    Args:
        before: those labels.
        files: the name of each shard's table.
    """

    def __init__(self, before: Annotation, files: list[str]) -> None:
        self._before, self._shards = before, {name: i for i, name in enumerate(files)}
        self._pairs = np.zeros((0, 3), np.int64)

    def add(self, name: str, table: pa.Table) -> None:
        """Count the rows of a table: its columns `label`, `id` and `row`. UserError where they are of other images."""
        rows, ids = table.column("row").to_numpy(), table.column("id").to_pylist()
        before = np.array(self._before.known(self._shards[name], rows, ids)[0], np.int64)
        self._pairs = counted_with_class(self._pairs, table.column("label").to_numpy(), before)

    def information(self) -> dict[str, float] | None:
        """What the two have in common, see `mutual_information`; None if no image had a label before."""
        return mutual_information(self._pairs) if len(self._pairs) else None
