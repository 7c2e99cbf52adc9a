"""Opens the outputs of a job: reads the files that describe them, and checks these against the manifest."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.materialize.folder import RECIPE
from pipeline.materialize.publish import QUARANTINE, QUARANTINE_SCHEMA, SHARDS_SCHEMA
from pipeline.recipe.load import parse_recipe
from pipeline.recipe.schema import Recipe
from pipeline.shards.corpus import Corpus
from pipeline.shards.described import SHARDS, read_described
from pipeline.storage import absolute, join

PAIRS = "pairs"
"""What a folder holds whose identity does not say it."""

_OUTPUTS = r"^(quarantine/)?[A-Za-z0-9._-]+\.(tar|parquet)$"
"""A pattern, for RE2, of the names that a job gives its files; no other name is ever opened."""

_BATCH = 1024


@dataclass(frozen=True, eq=False)
class Materialized:
    """The outputs of a finished job; cheap to pickle.

    Args:
        url: their folder.
        recipe: the recipe of the job, as far as that shapes the outputs.
        manifest: the manifest, as it is on disk.
        shards: one row for each shard, see `pipeline.materialize.publish.SHARDS_SCHEMA`.
        quarantine: one row for each drawing that is missing, see `QUARANTINE_SCHEMA`.
    """

    url: str
    recipe: Recipe
    manifest: dict[str, Any]
    shards: pa.Table
    quarantine: pa.Table

    @property
    def holds(self) -> str:
        """What the outputs hold: `pairs`, or what the job's `makes` says."""
        return str(self.manifest["identity"].get("makes", PAIRS))

    @property
    def counts(self) -> np.ndarray:
        """int64 (shards,): samples of each input shard, quarantined ones among them."""
        return self.shards.column("samples").fill_null(0).to_numpy().astype(np.int64)

    def corpus(self) -> Corpus:
        """The input shards by name, with their counts, for making an order. Their bytes cannot be read through it."""
        sizes = self.shards.column("bytes").to_numpy().astype(np.int64)
        return Corpus(self.shards.column("shard").to_pylist(), sizes, self.counts)

    def outputs(self, epoch: int) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Names, sizes and pairs of one drawing's files, one for each shard; the name is empty where the shard failed."""
        outputs = pc.list_element(self.shards.column("outputs"), epoch)
        names = pc.struct_field(outputs, "name").fill_null("").to_pylist()
        sizes, pairs = (pc.struct_field(outputs, name).fill_null(0).to_numpy() for name in ("bytes", "pairs"))
        return names, sizes, pairs

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of `shards` as plain data, a few made at a time."""
        for batch in self.shards.to_batches(_BATCH):
            yield from batch.to_pylist()


def open_materialized(
    url: str, wanted: str | None = None, command: str = "render", noun: str = "rendered corpus"
) -> Materialized:
    """Open the outputs of a job, by reading the files that describe them.

    Args:
        url: their folder.
        wanted: what they must hold, such as `pairs`; None for anything.
        command: the command that makes these, for errors.
        noun: what these are called, for errors.

    Raises:
        UserError: there are none, they are unfinished or damaged, or hold something else.
    """
    url = absolute(url)
    names = (SHARDS, QUARANTINE, RECIPE)
    manifest, files = read_described(url, names, noun, f"`pseudolabel {command}`", unchecked=(RECIPE,))
    try:
        document = json.loads(files[RECIPE])
        shards, quarantine = (pq.read_table(io.BytesIO(files[name])) for name in (SHARDS, QUARANTINE))
        _check_tables(shards, quarantine)
    except (ValueError, RecursionError, pa.ArrowException, OSError) as error:
        raise UserError(f"{url}: what its manifest names is damaged: {error}") from None
    found = Materialized(url, parse_recipe(document, join(url, RECIPE)), manifest, shards, quarantine)
    if wanted is not None and found.holds != wanted:
        raise UserError(f"{url} holds {found.holds}, not {wanted}; `pseudolabel {command}` makes these")
    return found


def _check_tables(shards: pa.Table, quarantine: pa.Table) -> None:
    """Raise ValueError where the tables hold what no render writes."""
    for name, table, schema in ((SHARDS, shards, SHARDS_SCHEMA), (QUARANTINE, quarantine, QUARANTINE_SCHEMA)):
        if not table.schema.equals(schema):
            raise ValueError(f"{name} has other columns than it must have")
    written = pc.list_flatten(shards.column("outputs")).combine_chunks()
    kept = pc.drop_null(shards.column("kept")).combine_chunks()
    outputs = [pa.table(rows.flatten(), names=[part.name for part in rows.type]) for rows in (written, kept)]
    rendered = shards.filter(pc.is_null(shards.column("failure")))
    for table, names in (
        (shards, ("shard", "bytes")),
        (rendered, ("samples", "pairs", "quarantined", "outputs")),
        (quarantine, quarantine.column_names),
        *((table, table.column_names) for table in outputs),
    ):
        for name in names:
            column = table.column(name)
            number = pa.types.is_integer(column.type)
            if column.null_count or (number and len(column) and pc.min(column).as_py() < 0):
                raise ValueError(f"there is no {name}, or none that can be")
    for table in outputs:
        inside = pc.match_substring_regex(table.column("name"), _OUTPUTS)
        if not pc.all(inside, min_count=0).as_py():
            stranger = table.filter(pc.invert(inside)).column("name")[0].as_py()
            raise ValueError(f"{SHARDS} names {stranger!r}, which is no file of a render in this folder")
