"""Writes rendered shards in their two formats: a WebDataset tar of files, or a Parquet table of tensors."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, Protocol

import numpy as np

from pipeline.materialize.columns import StoredColumn, encoder
from pipeline.materialize.commit import Output
from pipeline.recipe.schema import Recipe
from pipeline.shards.corpus import Sample
from pipeline.shards.members import Member, MemberRows, Members, sidecar
from pipeline.shards.writing import TarWriter
from pipeline.storage import write_atomic

_GROUP_BYTES, _MOST_GROUP_ROWS = 8 * 2**20, 1024
"""The size of a row group of Parquet, which training reads whole to get one row."""

Row = Mapping[str, np.ndarray]
"""One pair: a row of each stored column, by the column's name."""


class Writer(Protocol):
    """Writes the pairs of one drawing of a shard, in order."""

    def add(self, key: str, row: int, sample: Sample, others: dict[str, bytes], files: Mapping[str, Any]) -> None:
        """Append a pair.

        Args:
            key: its key in the output.
            row: the sample's row in the input shard.
            sample: the source.
            others: members of the source that are kept, by extension.
            files: what `prepare` made of the pair.
        """

    def finish(self) -> None:
        """Write what is still buffered."""

    def output(self, name: str) -> Output:
        """The file that was written, once it is closed."""


class ShardFormat:
    """The format of a rendered shard: encodes pairs for `Writer.add`, and opens writers.

    Args:
        recipe: the recipe.
        columns: its stored columns.
    """

    def __init__(self, recipe: Recipe, columns: list[StoredColumn]) -> None:
        self.columns, self._spec = columns, recipe.render
        self._encode: dict[str, Callable[[np.ndarray], Any]] = {}
        for column in columns:
            self._encode[column.name] = encoder(column, recipe.render) if self.is_tar else _bytes_of(column)

    @property
    def is_tar(self) -> bool:
        """Whether this is WebDataset."""
        return self._spec.format == "webdataset"

    def prepare(self, pair: Row) -> dict[str, Any]:
        """Encode the pair's columns as they are stored, by column name."""
        return {name: encode(pair[name]) for name, encode in self._encode.items()}

    @contextmanager
    def open(self, url: str) -> Iterator[Writer]:
        """Open a writer, whose file appears when the block ends without an exception; errors as in `write_atomic`."""
        if self.is_tar:
            with write_atomic(url) as file:
                tar = _Tar(file, self.columns)
                yield tar
            tar.save_members(url)
        else:
            with write_atomic(url) as file, TableWriter(file, table_schema(self.columns), group_rows(self.columns)) as writer:
                yield _Table(writer, self.columns)


class _Tar:
    """Writes a WebDataset tar."""

    def __init__(self, file: IO[bytes], columns: list[StoredColumn]) -> None:
        self._tar, self._columns, self._rows, self._pairs = TarWriter(file), columns, MemberRows(), 0

    def add(self, key: str, row: int, sample: Sample, others: dict[str, bytes], files: Mapping[str, Any]) -> None:
        members = {column.member: files[column.name] for column in self._columns}
        members |= {ext: body for ext, body in others.items() if ext not in members}
        parts = [Member(ext, self._tar.add(f"{key}.{ext}", body), len(body)) for ext, body in members.items()]
        self._rows.add(key, parts, None if sample.label < 0 else sample.label, None)
        self._pairs += 1

    def finish(self) -> None:
        self._tar.finish()

    def output(self, name: str) -> Output:
        return Output(name, self._tar.position, self._tar.sha256.hexdigest(), self._pairs)

    def save_members(self, url: str) -> None:
        """Write the index of the tar's members beside it."""
        Members.of(self._rows, self._tar.position).save(sidecar(url) or "")


class _Table:
    """Writes a Parquet table: tensors as binary values of fixed size, their shapes and types in the fields' metadata."""

    def __init__(self, writer: TableWriter, columns: list[StoredColumn]) -> None:
        self._writer, self._schema, self._group = writer, table_schema(columns), group_rows(columns)
        self._waiting: dict[str, list[Any]] = {name: [] for name in self._schema.names}

    def add(self, key: str, row: int, sample: Sample, others: dict[str, bytes], files: Mapping[str, Any]) -> None:
        kept = [{"ext": ext, "data": bytes(body)} for ext, body in others.items()]
        head = {"key": key, "id": sample.id, "row": row, "class": None if sample.label < 0 else sample.label, "others": kept}
        for name, value in (*head.items(), *files.items()):
            self._waiting[name].append(value)
        if len(self._waiting["key"]) == self._group:
            self._flush()

    def finish(self) -> None:
        if self._waiting["key"]:
            self._flush()
        self._writer.finish()

    def output(self, name: str) -> Output:
        return self._writer.output(name)

    def _flush(self) -> None:
        import pyarrow as pa

        self._writer.write(pa.table(self._waiting, schema=self._schema))
        self._waiting = {name: [] for name in self._schema.names}


class TableWriter:
    """Writes a table of a shard as Parquet, hashed on its way; the same rows make the same bytes, however they are cut.

    To be used in a `with` block inside that of the file: Parquet writes to it even where the block ends with an exception.

    Args:
        file: where to; it stays open.
        schema: the table's, of pyarrow.
        group: rows of a row group.
    """

    def __init__(self, file: IO[bytes], schema: Any, group: int) -> None:
        import pyarrow.parquet as pq

        self._file, self._group, self._rows = _Hashed(file), group, 0
        self._waiting = schema.empty_table()
        self._writer = pq.ParquetWriter(self._file, schema, compression="zstd", use_dictionary=False, write_statistics=False)

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def write(self, table: Any) -> None:
        """Append rows; row groups are written as they become full."""
        import pyarrow as pa

        self._rows += len(table)
        self._waiting = pa.concat_tables([self._waiting, table])
        while len(self._waiting) >= self._group:
            self._write_group()

    def finish(self) -> None:
        """Write the last row group, and what Parquet has at its end."""
        if len(self._waiting):
            self._write_group()
        self._writer.close()

    def output(self, name: str) -> Output:
        """The file that was written, once it is finished."""
        return Output(name, self._file.size, self._file.sha256.hexdigest(), self._rows)

    def _write_group(self) -> None:
        self._writer.write_table(self._waiting.slice(0, self._group).combine_chunks(), row_group_size=self._group)
        self._waiting = self._waiting.slice(self._group)


def group_rows(columns: list[StoredColumn]) -> int:
    """Rows in a row group of Parquet."""
    return max(1, min(_MOST_GROUP_ROWS, _GROUP_BYTES // max(1, sum(column.row_bytes for column in columns))))


def table_schema(columns: list[StoredColumn]) -> Any:
    """The schema of a rendered Parquet table."""
    import pyarrow as pa

    fields = [
        pa.field("key", pa.string()),
        pa.field("id", pa.uint64()),
        pa.field("row", pa.int64()),
        pa.field("class", pa.int32()),
    ]
    for column in columns:
        if column.kind == "class":
            fields.append(pa.field(column.name, pa.int64()))
        else:
            about = {"shape": json.dumps(column.shape), "dtype": column.dtype}
            fields.append(pa.field(column.name, pa.binary(column.row_bytes), metadata=about))
    fields.append(pa.field("others", pa.list_(pa.struct([pa.field("ext", pa.string()), pa.field("data", pa.binary())]))))
    return pa.schema(fields)


def _bytes_of(column: StoredColumn) -> Callable[[np.ndarray], Any]:
    if column.kind == "class":
        return int
    return lambda row: np.ascontiguousarray(row).tobytes()


class _Hashed(io.RawIOBase):
    """A file to write to that hashes and counts what it passes on; closing it leaves the underlying file open."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.sha256, self.size = file, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._file.write(data)
        view = memoryview(data)
        self.sha256.update(view)
        self.size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self.size
