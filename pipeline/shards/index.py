"""The index of a folder of shards, `index.parquet`: how many samples each shard holds, and the names of the classes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import join, read_all, write_atomic

NAME = "index.parquet"
UNFINISHED = "pack.unfinished"
"""A file with this name is in a folder from the start of a pack until its index is written."""

VERSION = 1
_BATCH = 4096

SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string()),
        pa.field("samples", pa.int64()),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string()),
    ]
)
_SCANNED = SCHEMA.append(pa.field("digest", pa.string()))
"""The schema for a folder whose shards were scanned; packed and rendered shards have a SHA-256 instead."""

_LEAST = 512  # bytes that a sample takes at least in a tar: a header
_VERSION_KEY, _CLASSES_KEY, _NUMBERS_KEY = b"pseudolabel.version", b"classes", b"numbers"


class DamagedRows(ValueError):
    """An index of ours has impossible rows, but whole classes: it may be made again."""


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of a shard.

    Args:
        samples: how many it holds.
        bytes: its size.
        sha256: of all its bytes, hexadecimal, where that was computed.
        digest: of its headers, its labels and the beginnings of its members, hexadecimal, where it was scanned.
    """

    samples: int
    bytes: int
    sha256: str | None = None
    digest: str | None = None


@dataclass
class Index:
    """Rows by the shards' file names, and the names that labels stand for, where they are known.

    Args:
        rows: by name.
        classes: the names.
        numbers: the number that stands for each of them in masks and boxes; None for 0, 1, 2, ...
    """

    rows: dict[str, Row] = field(default_factory=dict)
    classes: list[str] | None = None
    numbers: list[int] | None = None

    def save(self, folder: str) -> None:
        """Write `index.parquet` into the folder; OSError where that fails."""
        rows = self.rows.values()
        schema = _SCANNED if any(row.digest for row in rows) else SCHEMA
        columns = {name: [getattr(row, name) for row in rows] for name in schema.names if name != "shard"}
        save_table(pa.table({"shard": list(self.rows), **columns}, schema=schema), self.classes, folder, self.numbers)

    @classmethod
    def load(cls, folder: str) -> Index:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError, PermissionError, OSError: no index there, or not readable.
            ValueError: a file of that name that is no index of this version.
        """
        lookup = Lookup.load(folder)
        with _arrow_errors(folder):
            columns = [column.to_pylist() for column in lookup.file.read().columns]
        for row in zip(*columns[:3]):
            _check_row(folder, *row)
        return cls({shard: Row(*row) for shard, *row in zip(*columns)}, lookup.classes, lookup.numbers)


def save_table(table: pa.Table, classes: list[str] | None, folder: str, numbers: list[int] | None = None) -> None:
    """Write an index whose rows are a table already; OSError where that fails."""
    about = {_VERSION_KEY: str(VERSION), _CLASSES_KEY: json.dumps(classes)}
    if numbers is not None:
        about[_NUMBERS_KEY] = json.dumps(numbers)
    table = table.sort_by("shard").combine_chunks().replace_schema_metadata(about)
    with write_atomic(join(folder, NAME)) as file:
        pq.write_table(table, file, compression="zstd")


def renew(folder: str) -> None:
    """Write an index again unchanged, so that it is newer than its shards, which were found to agree with it."""
    content = read_all(join(folder, NAME))
    with write_atomic(join(folder, NAME)) as file:
        file.write(content)


@dataclass(frozen=True, eq=False)
class Lookup:
    """An index in which shards are looked up without loading all of its rows: 100,000 take much memory.

    Args:
        folder: where it lies.
        file: the index itself.
    """

    folder: str
    file: pq.ParquetFile

    @classmethod
    def load(cls, folder: str) -> Lookup:
        """Open what `Index.save` wrote; errors as in `Index.load`."""
        content = read_all(join(folder, NAME))
        with _arrow_errors(folder):
            file = pq.ParquetFile(pa.BufferReader(content))
        if (
            not any(map(file.schema_arrow.equals, (SCHEMA, _SCANNED)))
            or (file.schema_arrow.metadata or {}).get(_VERSION_KEY) != b"%d" % VERSION
        ):
            raise ValueError(f"{join(folder, NAME)}: not an index of version {VERSION}")
        return cls(folder, file)

    @property
    def classes(self) -> list[str] | None:
        """The names that labels stand for, where they are known; ValueError where they are damaged."""
        try:
            found = json.loads(self.file.schema_arrow.metadata.get(_CLASSES_KEY, b"null"))
        except (ValueError, RecursionError):
            found = {}
        if found is not None and not (isinstance(found, list) and all(isinstance(name, str) for name in found)):
            raise ValueError(f"{join(self.folder, NAME)}: damaged: its classes are no list of names")
        return found

    @property
    def numbers(self) -> list[int] | None:
        """The number of each class in masks and boxes; None for 0, 1, 2, ...; ValueError where they are damaged."""
        try:
            found = json.loads(self.file.schema_arrow.metadata.get(_NUMBERS_KEY, b"null"))
        except (ValueError, RecursionError):
            found = {}
        if found is None:
            return None
        whole = isinstance(found, list) and all(isinstance(number, int) for number in found)
        if not whole or len(found) != len(set(found)) or len(found) != len(self.classes or []):
            raise ValueError(f"{join(self.folder, NAME)}: damaged: it has no number for each of its classes")
        return found

    def find(self, column: str, urls: list[str], sizes: np.ndarray) -> Iterator[tuple[int, Any]]:
        """Look up a column for some shards.

        Args:
            column: `samples`, `sha256` or `digest`; an index of packed shards has no `digest`.
            urls: of shards in the folder.
            sizes: int64 (n,): their sizes in bytes.

        Yields:
            For each shard that the index holds with this size: its place in `urls`, and its value in the column.

        Raises:
            ValueError: the index is damaged; `DamagedRows` where it can be made again.
        """
        if column not in self.file.schema_arrow.names:
            return
        wanted = iter(sorted(range(len(urls)), key=urls.__getitem__))
        n = next(wanted, None)
        for name, size, value in self._rows(column):  # both are sorted by name, so one pass is enough
            url = f"{self.folder}/{name}"
            while n is not None and urls[n] < url:
                n = next(wanted, None)
            if n is not None and urls[n] == url and sizes[n] == size:
                yield n, value

    def _rows(self, column: str) -> Iterator[tuple[Any, ...]]:
        with _arrow_errors(self.folder):
            for batch in self.file.iter_batches(_BATCH, columns=["shard", "bytes", column], use_threads=False):
                for name, size, value in zip(*(batch.column(name).to_pylist() for name in ("shard", "bytes", column))):
                    _check_row(self.folder, name, value if column == "samples" else 0, size)
                    yield name, size, value


def _check_row(folder: str, shard: Any, samples: Any, size: Any) -> None:
    """Raise DamagedRows for a row that no shard can have; the least size of a sample is known of a tar only."""
    if None in (shard, samples, size) or min(samples, size) < 0 or (shard.endswith(".tar") and samples * _LEAST > size):
        raise DamagedRows(f"{join(folder, NAME)}: damaged: it gives {shard!r} {samples} samples in {size} bytes")


@contextmanager
def _arrow_errors(folder: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:  # pyarrow raises OSError, too, for damaged pages
        raise ValueError(f"{join(folder, NAME)}: damaged: {error}") from None
