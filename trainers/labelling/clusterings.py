"""What `cluster` keeps in its folder, by which any feature can be given its cluster: components and centroids; and its report."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.errors import RunError
from pipeline.storage import join
from trainers.labelling.blocks import BlockPool
from trainers.labelling.hierarchy import Centroids
from trainers.labelling.information import counted_with_class, mutual_information
from trainers.labelling.pca import projected

CENTROIDS, COARSE, ROUNDS, PCA = "centroids.npy", "coarse.npy", "rounds.json", "pca.npy"


class FeatureView:
    """Features as they are clustered, in their principal components if there are such, and what the clusterings say of them.

    Args:
        pca: see `trainers.labelling.pca.Components`; None leaves features as they are.
        clusterings: centroids of each.
        pool: threads to compute on.
    """

    def __init__(self, pca: np.ndarray | None, clusterings: list[Centroids], pool: BlockPool) -> None:
        self._pca, self._clusterings, self._pool = pca, clusterings, pool

    @classmethod
    def of(cls, folder: str, identity: dict[str, Any], pool: BlockPool, clusterings: bool = True) -> FeatureView:
        """Read what a job has written; without `clusterings` the components alone.

        Raises:
            RunError: it cannot be read.
        """
        pca = read_array(join(folder, PCA)) if "pca" in identity else None
        found = [read_centroids(folder, identity, n) for n in range(len(identity["levels"]))] if clusterings else []
        return cls(pca, found, pool)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Features, float32 (n, d), as they are clustered."""
        return x if self._pca is None else projected(x, self._pca, self._pool)

    def found(self, x: np.ndarray) -> list[np.ndarray]:
        """Label, distance and margin of features, float32 (n, d), for one clustering after the other."""
        points = self(x)
        return [column for each in self._clusterings for column in each.assign(points, self._pool)]


class ClusterTally:
    """Counts what a clustering's labels are.

    Args:
        n: which clustering, from 0.
        rounds: what is known of its k-means.
    """

    def __init__(self, n: int, rounds: dict[str, Any]) -> None:
        self._n, self._rounds = n, rounds
        self._sizes, self._nearest = np.zeros(rounds["clusters"], np.int64), 0.0
        self._pairs = np.zeros((0, 3), np.int64)

    def add(self, table: pa.Table) -> None:
        """Count the rows of a table."""
        labels, distance = (table.column(numbered(name, self._n)).to_numpy() for name in ("label", "distance"))
        self._sizes += np.bincount(labels, minlength=len(self._sizes))
        self._nearest += float(distance.sum(dtype=np.float64))
        self._pairs = counted_with_class(self._pairs, labels, table.column("class").fill_null(-1).to_numpy())

    def report(self) -> dict[str, Any]:
        """What the report says of the clustering."""
        rounds, images = self._rounds, int(self._sizes.sum())
        return {
            "column": numbered("label", self._n),
            "images": images,
            "clusters": rounds["clusters"],
            "asked": rounds["asked"],
            "sizes": self._sizes.tolist(),
            "mean_distance": self._nearest / max(1, images),
            "sample": rounds["sample"],
            "inertia": rounds["inertia"],
            "split": rounds["split"],
            **({"coarse": rounds["coarse"]} if "coarse" in rounds else {}),
            "labels": mutual_information(self._pairs) if len(self._pairs) else None,
        }


def numbered(name: str, n: int) -> str:
    """The name of a file or a column of clustering `n`, counted from 0: `label`, `label_2`, `label_3`."""
    stem, dot, ending = name.partition(".")
    return name if n == 0 else f"{stem}_{n + 1}{dot}{ending}"


def read_centroids(folder: str, identity: dict[str, Any], n: int) -> Centroids:
    """The centroids of clustering `n` of a folder, counted from 0; errors as of `read_array`."""
    fine, spherical = read_array(join(folder, numbered(CENTROIDS, n))), identity["spherical"]
    if identity["levels"][n] == 1:
        return Centroids(fine, spherical)
    sizes = json.loads(storage.read_all(join(folder, numbered(ROUNDS, n))))["coarse"]["clusters"]
    return Centroids(fine, spherical, read_array(join(folder, numbered(COARSE, n))), np.array(sizes, np.int64))


def read_array(url: str) -> np.ndarray:
    """An array of a folder.

    Raises:
        RunError: it cannot be read.
    """
    try:
        array: np.ndarray = np.load(io.BytesIO(storage.read_all(url)), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RunError(f"{url} cannot be read: {error}; delete it and run the same command again") from None
    return array
