"""Reads a rendered corpus: the files that describe it, and its pairs in the order of training."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.draws import sample_id
from pipeline.errors import ShardError, UserError
from pipeline.materialize.columns import StoredColumn, decode, stored_columns
from pipeline.materialize.job import beside
from pipeline.materialize.opened import PAIRS, Materialized, open_materialized
from pipeline.materialize.writers import group_rows
from pipeline.recipe.schema import Recipe
from pipeline.rendering.renderer import Clock, Columns
from pipeline.rendering.units import UnitSource, chosen_task, seconds_column
from pipeline.shards.corpus import Corpus
from pipeline.shards.described import MANIFEST
from pipeline.storage import absolute, exists, join, open_seekable

_CACHED_GROUPS = 16


@dataclass(frozen=True, eq=False)
class RenderedCorpus(Materialized):
    """A rendered corpus; its recipe is the one that it was rendered with."""

    @property
    def columns(self) -> list[StoredColumn]:
        """The stored columns, with the names of their members in this corpus."""
        members = {column["name"]: column["member"] for column in self.manifest["columns"]}
        return [replace(column, member=members[column.name]) for column in stored_columns(self.recipe)]


def is_rendered(recipe: Recipe) -> bool:
    """Whether the recipe's `corpus.shards` is the folder of a rendered corpus."""
    return _rendered_folder(recipe.corpus.shards)


def _rendered_folder(shards: str | list[str]) -> bool:
    if not isinstance(shards, str) or shards.endswith(".tar") or any(character in shards for character in "*?[{"):
        return False
    try:
        return exists(join(absolute(shards), MANIFEST))
    except OSError:
        return False


def open_rendered(url: str) -> RenderedCorpus:
    """Open a rendered corpus, by reading the files that describe it.

    Raises:
        UserError: there is none, it is unfinished or damaged.
    """
    found = open_materialized(url, PAIRS)
    return RenderedCorpus(found.url, found.recipe, found.manifest, found.shards, found.quarantine)


def for_training(recipe: Recipe) -> tuple[Recipe, RenderedCorpus | None]:
    """The recipe of a training run, and the rendered corpus that its `corpus.shards` names, if it is one.

    Raises:
        UserError: as in `open_rendered` and `resolve`; or a rendered corpus is part of a mixture.
    """
    for name, part in recipe.corpus.mix.items():
        if _rendered_folder(part.shards):
            raise UserError(
                f"corpus.mix.{name}: {part.shards} is a rendered corpus, which cannot be mixed; mix the original shards"
            )
    if not is_rendered(recipe):
        return recipe, None
    assert isinstance(recipe.corpus.shards, str)
    rendered = open_rendered(recipe.corpus.shards)
    return resolve(recipe, rendered), rendered


def resolve(recipe: Recipe, rendered: RenderedCorpus) -> Recipe:
    """The recipe of a training run on a rendered corpus: crop and tasks as rendered, everything else as the recipe says.

    Raises:
        UserError: the recipe asks for another crop, or for tasks that were not rendered so.
    """
    theirs = rendered.recipe
    if not rendered.manifest["complete"]:
        failed = rendered.manifest["totals"]["failed"]
        raise UserError(f"{rendered.url}: {failed} shards failed; complete it with `pseudolabel render --retry-failed`")
    for name in sorted(recipe.image.model_fields_set - {"mean", "std"}):
        there, now = getattr(theirs.image, name), getattr(recipe.image, name)
        if there != now:
            raise UserError(f"image.{name}: {now}, but {rendered.url} was rendered with {there}; leave it out")
    for name, task in recipe.tasks.items():
        if name not in theirs.tasks:
            raise UserError(f"tasks.{name} was not rendered; {rendered.url} holds {', '.join(theirs.tasks)}")
        own = {"weight", "objective"}
        if task.model_dump(exclude=own) != theirs.tasks[name].model_dump(exclude=own):
            raise UserError(f"tasks.{name} was rendered with other parameters: {theirs.tasks[name].model_dump(exclude=own)}")
    given, there = beside(recipe), rendered.manifest["identity"].get("tables", {})
    if other := next((where for where, content in given.items() if content != there.get(where)), None):
        raise UserError(f"{other}: {rendered.url} was rendered without it, or with other tables; leave it out")
    image = theirs.image.model_copy(update={"mean": recipe.image.mean, "std": recipe.image.std})
    place = recipe.placement.model_copy(update={"render": "workers"})
    return recipe.model_copy(update={"image": image, "tasks": recipe.tasks or theirs.tasks, "placement": place})


@dataclass(frozen=True)
class RenderedSource(UnitSource):
    """Makes units of a rendered corpus, with the columns that `UnitSource` makes of the original one.

    Epochs take the drawings in turn.

    Args:
        rendered: the corpus; must not be None.
    """

    rendered: RenderedCorpus | None = field(default=None, kw_only=True)

    def maker(self, threads: int, report: Callable[[str, int], None]) -> Callable[[int], Columns]:
        reader = _Reader(self)

        def make(number: int) -> Columns:
            report("read", number)
            return reader(number)

        return make


class _Reader:
    """Reads the units of a `RenderedSource`."""

    def __init__(self, source: RenderedSource) -> None:
        if source.rendered is None:
            raise ValueError("a rendered source without a rendered corpus")
        self._source, self._rendered = source, source.rendered
        recipe = self._rendered.recipe
        wanted = set(source.recipe.tasks)
        self._stored = self._rendered.columns
        wanted |= {""} if source.image else set()  # the crop belongs to no task
        self._columns = [c for c in self._stored if c.name.rpartition(".")[0] in wanted]
        self._epochs, self._tar = recipe.render.epochs, recipe.render.format == "webdataset"
        self._bad = _bad_rows(self._rendered)
        self._files = lru_cache(maxsize=self._epochs)(self._open)
        self._urls = self._rendered.shards.column("shard").to_pylist()
        self._group = lru_cache(maxsize=_CACHED_GROUPS)(self._read_group)

    def __call__(self, number: int) -> Columns:
        started = Clock()
        epoch, rows = self._source.schedule.unit(number, self._source.step)
        drawing, n = epoch % self._epochs, len(rows)
        columns: Columns = {
            "id": np.zeros(n, np.uint64),
            "weight": np.zeros(n, np.float32),
            "class": np.full(n, -1, np.int64),
            **{column.name: np.zeros((n, *column.shape), column.dtype) for column in self._columns},
        }
        failure = [""] * n
        for shard in np.unique(rows.shards[rows.shards >= 0]):
            bad = self._bad.get((self._urls[shard], drawing), {})
            good = []
            for place in np.flatnonzero(rows.shards == shard):
                row = int(rows.rows[place])
                if row in bad:
                    key, reason = bad[row]
                    columns["id"][place] = self._id(shard, key)
                    failure[place] = json.dumps({"shard": self._urls[shard], "key": key, "row": row, "reason": reason})
                else:
                    good.append(place)
            if good:
                there = rows.rows[good]
                self._fill(int(shard), drawing, there - np.searchsorted(sorted(bad), there), np.array(good), columns)
        return {
            **columns,
            **chosen_task(self._source.recipe, epoch, columns["id"]),
            "unit": np.full(n, number, np.int64),
            "seconds": seconds_column(n, {"render": Clock().since(started)}),
            "failure": np.array(failure, object),
        }

    def _id(self, shard: int, key: str) -> int:
        return sample_id(f"{self._urls[shard]}/{key}" if self._rendered.recipe.corpus.keys == "shard" else key)

    def _open(self, drawing: int) -> Corpus:
        names, sizes, pairs = self._rendered.outputs(drawing)
        return Corpus([join(self._rendered.url, name) for name in names], sizes, pairs)

    def _fill(self, shard: int, drawing: int, rows: np.ndarray, places: np.ndarray, columns: Columns) -> None:
        """Copy pairs of one file, by their rows in it, to their places in the unit."""
        columns["weight"][places] = 1
        files = self._files(drawing)
        if not self._tar:
            self._fill_from_table(files.urls[shard], rows, places, columns)
            return
        suffix = f"-e{drawing}" if self._epochs > 1 else ""
        for place, (sample, parts) in zip(places, files.read_members(shard, rows)):
            columns["id"][place] = self._id(shard, sample.key.removesuffix(suffix))
            columns["class"][place] = sample.label
            for column in self._columns:
                try:
                    columns[column.name][place] = decode(column, parts[column.member])
                except (KeyError, ValueError) as error:
                    raise ShardError(files.urls[shard], f"sample {sample.key} is damaged: {error}") from None

    def _fill_from_table(self, url: str, rows: np.ndarray, places: np.ndarray, columns: Columns) -> None:
        size = group_rows(self._stored)
        for group in np.unique(rows // size):
            here = np.flatnonzero(rows // size == group)
            within, table = rows[here] % size, self._group(url, int(group))
            for name in ("id", "class", *(column.name for column in self._columns)):
                columns[name][places[here]] = table[name][within]

    def _read_group(self, url: str, group: int) -> dict[str, Any]:
        """A row group's columns as arrays."""
        try:
            with open_seekable(url) as file:
                read = pq.ParquetFile(file).read_row_group(
                    group, columns=["id", "class", *(column.name for column in self._columns)]
                )
        except (OSError, pa.ArrowException) as error:
            raise ShardError(url, f"cannot be read: {error}") from None
        found = {"id": read.column("id").to_numpy(), "class": read.column("class").fill_null(-1).to_numpy()}
        for column in self._columns:
            values = read.column(column.name).combine_chunks()
            found[column.name] = values.to_numpy() if column.kind == "class" else tensors(values, column)
        return found


def tensors(values: Any, column: StoredColumn) -> np.ndarray:
    """The rows of a Parquet column of tensors, without a copy."""
    values = values.chunk(0) if isinstance(values, pa.ChunkedArray) else values
    start = values.offset * column.row_bytes
    data = np.frombuffer(values.buffers()[1], np.uint8)[start : start + len(values) * column.row_bytes]
    return data.view(column.dtype).reshape(len(values), *column.shape)


def _bad_rows(rendered: RenderedCorpus) -> dict[tuple[str, int], dict[int, tuple[str, str]]]:
    """Key and reason of the missing rows, by (shard, drawing), then row."""
    found: dict[tuple[str, int], dict[int, tuple[str, str]]] = {}
    for bad in rendered.quarantine.to_pylist():
        found.setdefault((bad["shard"], bad["epoch"]), {})[bad["row"]] = (bad["key"], bad["reason"])
    return found
