"""The index of a folder of shards, `index.parquet`: how many samples each shard holds, and the names of the classes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import join, read_all, write_atomic

NAME = "index.parquet"
UNFINISHED = "pack.unfinished"
"""Lies in a folder from the beginning of a pack until its index is written."""

VERSION = 1

_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string()),
        pa.field("samples", pa.int64()),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string()),
    ]
)
_VERSION_KEY, _CLASSES_KEY = b"pseudolabel.version", b"classes"


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of a shard: samples, size in bytes, and its SHA-256 (hexadecimal) where it was computed."""

    samples: int
    bytes: int
    sha256: str | None = None


@dataclass
class Index:
    """Rows by the shards' file names, and the names that the labels 0, 1, ... stand for, where they are known."""

    rows: dict[str, Row] = field(default_factory=dict)
    classes: list[str] | None = None

    def save(self, folder: str) -> None:
        """Write `index.parquet` into the folder; OSError where that cannot be."""
        names = sorted(self.rows)
        rows = [self.rows[name] for name in names]
        columns = [names, [row.samples for row in rows], [row.bytes for row in rows], [row.sha256 for row in rows]]
        table = pa.table(dict(zip(_SCHEMA.names, columns)), schema=_SCHEMA)
        about = {_VERSION_KEY: str(VERSION), _CLASSES_KEY: json.dumps(self.classes)}
        with write_atomic(join(folder, NAME)) as file:
            pq.write_table(table.replace_schema_metadata(about), file, compression="zstd")

    @classmethod
    def load(cls, folder: str) -> Index:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError, PermissionError, OSError: no index there, or not readable.
            ValueError: a file of that name that is no index of this version.
        """
        url = join(folder, NAME)
        try:
            table = pq.ParquetFile(pa.BufferReader(read_all(url))).read()
        except pa.ArrowException as error:
            raise ValueError(f"{url}: damaged: {error}") from None
        about = table.schema.metadata or {}
        if about.get(_VERSION_KEY) != str(VERSION).encode() or not table.schema.equals(_SCHEMA):
            raise ValueError(f"{url}: not an index of version {VERSION}")
        columns = [table.column(name).to_pylist() for name in _SCHEMA.names]
        rows = {shard: Row(*row) for shard, *row in zip(*columns)}
        return cls(rows, json.loads(about.get(_CLASSES_KEY, b"null")))
