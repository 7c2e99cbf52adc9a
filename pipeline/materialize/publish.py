"""Writes what makes the outputs of a job a corpus: index, quarantine table, table of shards and, last of all, the manifest."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import RunError
from pipeline.materialize.commit import CommitRecord, failed, failure_url, load_failure, records, write_json
from pipeline.materialize.folder import IDENTITY, RECIPE, discard_unfinished_shards
from pipeline.materialize.job import Job, versions
from pipeline.rendering.quarantine import check_budget
from pipeline.shards.described import MANIFEST, MANIFEST_VERSION, SHARDS
from pipeline.shards.index import NAME as INDEX
from pipeline.shards.index import SCHEMA, save_table

QUARANTINE = "quarantine.parquet"
_BATCH = 4096  # rows gathered before they are written
_NAMED = 5

_OUTPUT = pa.struct(
    [pa.field("name", pa.string()), pa.field("bytes", pa.int64()), pa.field("sha256", pa.string()), pa.field("pairs", pa.int64())]
)
SHARDS_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("samples", pa.int64()),
        pa.field("pairs", pa.int64()),
        pa.field("quarantined", pa.int64()),
        pa.field("outputs", pa.list_(_OUTPUT)),
        pa.field("kept", _OUTPUT),
        pa.field("failure", pa.string()),
    ]
)
QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string()),
        pa.field("key", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("bytes", pa.int64()),
        pa.field("sha256", pa.string()),
        pa.field("row", pa.int64()),
        pa.field("epoch", pa.int32()),
    ]
)


@dataclass
class Totals:
    """Sums over all outputs; `pairs` are the rows of these, whatever the job makes.

    A sample counts as quarantined if any of its drawings is missing.
    """

    shards: int = 0
    failed: int = 0
    samples: int = 0
    pairs: int = 0
    quarantined: int = 0


def publish(job: Job, done: list[int]) -> Totals:
    """Write the files that describe the shards that are done and those that failed; a second call writes the same.

    Args:
        job: the job.
        done: places of the shards that have a commit record, ascending; all others have a record of why they failed.

    Raises:
        BudgetExceeded: too many samples are quarantined, over all runs on the folder.
        RunError: a record cannot be read, or a file not written.
    """
    try:
        return _publish(job, set(done))
    except OSError as error:
        raise RunError(f"{job.out}: the manifest cannot be written: {error}; run the same command again") from error


def _publish(job: Job, done: set[int]) -> Totals:
    totals, index = Totals(len(job.corpus.urls), len(job.corpus.urls) - len(done)), _Rows(SCHEMA)
    broken = {i: load_failure(job.out, job.stem(i)) for i in range(len(job.corpus.urls)) if i not in done}
    sums = {}
    some: list[dict[str, str]] = []
    with _IndexTable(SHARDS_SCHEMA) as shards, _IndexTable(QUARANTINE_SCHEMA) as quarantine:
        for i, record in _in_order(job, done):
            if record is None:
                shards.add({"shard": job.shard(i), "bytes": int(job.corpus.sizes[i]), "failure": broken[i]["reason"]})
                continue
            _count(totals, record)
            row = {
                "shard": record.shard,
                "bytes": record.bytes,
                "samples": record.samples,
                "pairs": sum(output.pairs for output in record.outputs),
                "quarantined": record.quarantined,
                "outputs": [_plain(output) for output in record.outputs],
                "kept": _plain(record.kept) if record.kept else None,
            }
            shards.add(row)
            for bad in record.bad:
                quarantine.add({"shard": record.shard, **_plain(bad)})
                if len(some) < _NAMED:
                    some.append({"shard": record.shard, "key": bad.key, "reason": bad.reason})
            for output in record.outputs:
                index.add({"shard": output.name, "samples": output.pairs, "bytes": output.bytes, "sha256": output.sha256})
        for name, table in ((SHARDS, shards), (QUARANTINE, quarantine)):
            sums[name] = table.save(job.url(name))
    check_budget(job.recipe.failures.budget, totals.quarantined, totals.samples, lambda: some)
    write_json(job.url(RECIPE), job.document())  # again, by this run: an earlier one may be damaged
    outputs = index.table()
    more = job.finish(name.as_py() for name in outputs.column("shard"))
    save_table(outputs, job.corpus.classes, job.out)
    for name in (INDEX, RECIPE, IDENTITY, *more):
        sums[name] = hashlib.sha256(storage.read_all(job.url(name))).hexdigest()
    manifest = {
        "version": MANIFEST_VERSION,
        "complete": not broken,
        "totals": vars(totals),
        "identity": job.identity,
        "digest": job.digest,
        **job.described(),
        "versions": versions(),
        "sha256": sums,
    }
    write_json(job.url(MANIFEST), manifest)
    _tidy(job, done)
    return totals


def _count(totals: Totals, record: CommitRecord) -> None:
    totals.samples += record.samples
    totals.pairs += sum(output.pairs for output in record.outputs)
    totals.quarantined += record.quarantined


def _in_order(job: Job, done: set[int]) -> Iterator[tuple[int, CommitRecord | None]]:
    """Every shard of the corpus in its order, with its record if it is done."""
    loaded = records(job.out, (job.stem(i) for i in sorted(done)))
    for i in range(len(job.corpus.urls)):
        yield i, next(loaded) if i in done else None


def _tidy(job: Job, done: set[int]) -> None:
    """Remove what killed processes left half written, records of failures out of date, and the mark of an unfinished job."""
    current = {job.stem(i) for i in range(len(job.corpus.urls)) if i not in done}
    for stem in failed(job.out) - current:
        storage.remove(failure_url(job.out, stem))
    discard_unfinished_shards(job, finished=True)
    storage.remove(job.url(job.unfinished))


def _plain(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__}


class _Rows:
    """Collects the rows of a table, and packs them now and then: as Python objects they take ten times the memory."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._rows: list[dict[str, Any]] = []
        self._packed: list[pa.Table] = []

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == _BATCH:
            self._pack()

    def table(self) -> pa.Table:
        self._pack()
        return pa.concat_tables(self._packed)

    def _pack(self) -> None:
        self._packed.append(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


class _IndexTable:
    """Collects rows of a Parquet table, compressed in memory; the same rows make the same bytes."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema, self._rows, self._buffer = schema, [], io.BytesIO()  # type: ignore[var-annotated]
        self._writer = pq.ParquetWriter(self._buffer, schema, compression="zstd")

    def __enter__(self) -> _IndexTable:
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == _BATCH:
            self._flush()

    def save(self, url: str) -> str:
        """Write the table; returns its SHA-256."""
        self._flush()
        self._writer.close()
        content = self._buffer.getvalue()
        with storage.write_atomic(url) as file:
            file.write(content)
        return hashlib.sha256(content).hexdigest()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []
