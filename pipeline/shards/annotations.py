"""Tables beside a corpus, such as those of `pseudolabel cluster`, joined by shard and row: labels, and images to keep."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.recipe.corpus import AnnotationSection, KeepSection
from pipeline.shards.described import MANIFEST, SHARDS, read_described
from pipeline.storage import absolute, join, open_seekable, read_all, without_secrets

NO_LABEL = -1
"""What an image is given that has no label."""

KEPT = "corpus.keep"

_REPORT = "report.json"
_CACHED_TABLES = 256  # as many as one batch may draw from


@dataclass(frozen=True, eq=False)
class Annotation:
    """One label for each image of a corpus; cheap to pickle. Made by `open_annotation`.

    Args:
        where: its place in the recipe, for errors.
        url: the folder of its tables.
        spec: which column is the label, and which images have one.
        files: the table of each shard of the corpus, by place.
    """

    where: str
    url: str
    spec: AnnotationSection
    files: list[str]

    def known(self, shard: int, rows: np.ndarray, ids: Sequence[int]) -> tuple[list[int], list[float]]:
        """The labels of some images of a shard, `NO_LABEL` where an image has none, and how much each counts.

        Args:
            shard: the shard's place in the corpus.
            rows: int64 (n,): rows of the shard itself.
            ids: the images' ids in the corpus, n.

        Raises:
            UserError: the table cannot be read, or tells of other images.
        """
        table = self._of_shard(shard)
        places = np.minimum(np.searchsorted(table.rows, rows), max(len(table.rows) - 1, 0))
        there = table.rows[places] == rows if len(table.rows) else np.zeros(len(rows), bool)
        labels, weights = np.full(len(rows), NO_LABEL, np.int64), np.zeros(len(rows), np.float32)
        labels[there], weights[there] = table.labels[places[there]], table.weights[places[there]]
        others = table.ids[places[there]] != np.asarray(ids, np.uint64)[there]
        if others.any():
            row = int(np.asarray(rows)[there][others][0])
            raise self._of_others(shard, row)
        return labels.tolist(), weights.tolist()

    def labelled_rows(self, shard: int, count: int) -> np.ndarray:
        """int64, ascending: the rows of a shard of `count` samples that have a label; errors as in `known`."""
        table = self._of_shard(shard)
        rows = table.rows[table.labels != NO_LABEL]
        if len(rows) and rows[-1] >= count:
            raise self._of_others(shard, int(rows[-1]))
        return rows

    def _of_shard(self, shard: int) -> _Labels:
        bounds = tuple(sorted(self.spec.least.items())), tuple(sorted(self.spec.most.items()))
        return _table(join(self.url, self.files[shard]), self.spec.column, self.spec.weight, *bounds)

    def _of_others(self, shard: int, row: int) -> UserError:
        return UserError(
            f"{self.where}: row {row} of {self.files[shard]} tells of another image than row {row} of the shard: the shards were "
            "packed again since, or corpus.keys is another. Make the tables again from these shards"
        )


@dataclass(frozen=True)
class _Labels:
    """The labels of a shard: rows of the shard, int64 ascending; ids, uint64; labels, int64, `NO_LABEL` beyond a bound; weights,
    float32.
    """

    rows: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


def open_annotation(where: str, spec: AnnotationSection, shards: Sequence[str]) -> Annotation:
    """Open the tables of an annotation.

    Args:
        where: its place in the recipe, for errors.
        spec: its section of the recipe.
        shards: the names of the corpus's shards, see `Corpus.shard_name`.

    Raises:
        UserError: there are no finished tables, or none for some of the shards.
    """
    url = absolute(spec.table)
    listed = _listed(url, where)
    files = dict(zip(listed.column("shard").to_pylist(), listed.column("outputs").to_pylist()))
    missing = [shard for shard in shards if not files.get(shard)]
    if missing:
        raise UserError(
            f"{where}: {without_secrets(url)} has no table for {len(missing)} of {len(shards)} shards, such as {missing[0]}: it "
            "was made of other shards, or they have other names now. Make the tables again from these shards"
        )
    return Annotation(where, url, spec, [files[shard][0]["name"] for shard in shards])


def open_kept(spec: KeepSection, shards: Sequence[str]) -> Annotation:
    """Open the tables that say which images are kept: those that have a label in what is returned, their row.

    Args and errors as for `open_annotation`.
    """
    return open_annotation(KEPT, AnnotationSection(table=spec.table, column="row", least=spec.least, most=spec.most), shards)


def tables_digest(where: str, table: str) -> str:
    """What the tables in a folder hold, as a SHA-256, hexadecimal; errors as in `open_annotation`."""
    return str(_described(absolute(table), where, ())[0]["sha256"][SHARDS])


def class_sizes(spec: AnnotationSection) -> list[int]:
    """How many images have each label, whatever the bounds are, by the report beside the tables.

    Raises:
        UserError: it does not tell.
    """
    url = join(absolute(spec.table), _REPORT)
    try:
        found = json.loads(read_all(url))["sizes"]
        if spec.column != "label" or not all(type(size) is int for size in found):
            raise KeyError
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{without_secrets(url)} does not say how many images have each {spec.column}: leave `balance` out"
        ) from None
    return list(found)


def _listed(url: str, where: str) -> pa.Table:
    content = _described(url, where, (SHARDS,))[1][SHARDS]
    try:
        return pq.read_table(io.BytesIO(content), columns=["shard", "outputs"])
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{where}: {without_secrets(join(url, SHARDS))} cannot be read: {error}") from None


def _described(url: str, where: str, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, bytes]]:
    try:
        manifest, files = read_described(url, names, "folder of tables", "`pseudolabel cluster` or `label`")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if SHARDS not in manifest["sha256"]:
        raise UserError(f"{where}: {without_secrets(join(url, MANIFEST))} is damaged: it names no {SHARDS}")
    if not manifest["complete"]:
        raise UserError(f"{where}: {without_secrets(url)}: some shards failed; complete it with --retry-failed")
    return manifest, files


@lru_cache(maxsize=_CACHED_TABLES)
def _table(
    url: str, column: str, weight: str | None, least: tuple[tuple[str, float], ...], most: tuple[tuple[str, float], ...]
) -> _Labels:
    bounds = [name for name, _ in (*least, *most)] + ([weight] if weight else [])
    try:
        with open_seekable(url) as file:
            found = pq.ParquetFile(file)
            if unknown := [name for name in (column, *bounds) if name not in found.schema_arrow.names]:
                raise UserError(
                    f"{without_secrets(url)} has no column {unknown[0]!r}; there are {', '.join(found.schema_arrow.names)}"
                )
            table = found.read(columns=list(dict.fromkeys(["row", "id", column, *bounds])))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{without_secrets(url)} cannot be read: {error}") from None
    if not pa.types.is_integer(table.schema.field(column).type):
        raise UserError(f"{without_secrets(url)}: {column} holds {table.schema.field(column).type}, and labels are whole numbers")
    rows, ids = (table.column(name).to_numpy() for name in ("row", "id"))
    labels = table.column(column).fill_null(NO_LABEL).to_numpy().astype(np.int64)
    left_out = np.zeros(len(rows), bool)
    for name, bound in least:
        left_out |= ~(table.column(name).to_numpy() >= bound)  # so that NaN is left out, too
    for name, bound in most:
        left_out |= ~(table.column(name).to_numpy() <= bound)
    labels = np.where(left_out, NO_LABEL, labels)
    weights = np.ones(len(rows), np.float32)
    if weight:
        weights = table.column(weight).to_numpy().astype(np.float32)
        if (wrong := (labels != NO_LABEL) & ~((weights >= 0) & np.isfinite(weights))).any():
            first = int(np.flatnonzero(wrong)[0])
            raise UserError(
                f"{without_secrets(url)}: {weight} of row {rows[first]} is {weights[first]}, and a weight is a number, 0 or above"
            )
    order = np.argsort(rows, kind="stable")
    return _Labels(rows[order].astype(np.int64), ids[order].astype(np.uint64), labels[order], weights[order])
