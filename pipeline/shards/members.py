"""The index of one shard: where each sample's members lie, so that a range of the shard can be read without the rest."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.draws import hash64, sample_id
from pipeline.shards import naming
from pipeline.storage import (
    is_local,
    join,
    read_all,
    unsigned,
    write_atomic,
)

VERSION = 1

_PART = pa.struct([pa.field("ext", pa.string()), pa.field("offset", pa.int64()), pa.field("size", pa.int64())])
_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("ext", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("label", pa.int32()),
        pa.field("others", pa.list_(_PART)),
        pa.field("problem", pa.string()),
    ]
)
_METADATA = b"pseudolabel.members"
_BATCH = 1024
_LABEL_PROBLEM = "cls is not "  # how earlier versions began the problem of an unreadable `cls`

log = logging.getLogger(__name__)


class DamagedIndex(ValueError):
    """A file that this project wrote holds impossible content; it may be replaced."""


class Member(NamedTuple):
    """A member of a sample: extension, first byte and size of its body."""

    ext: str
    offset: int
    size: int


@dataclass
class MemberRows:
    """Collects samples for a `Members` table, packing every 1024 of them: as Python objects they take ten times the memory."""

    unread: int = 0
    """Samples whose `cls` is no class number."""
    text: str = ""
    """The first such sample: its key and the content of its `cls`."""
    _columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in _SCHEMA.names})
    _packed: list[pa.Table] = field(default_factory=list)

    def append(self, *row: Any) -> None:
        """Append a sample by its row of the table."""
        for values, value in zip(self._columns.values(), row, strict=True):
            values.append(value)
        if len(self._columns["key"]) == _BATCH:
            self._pack()

    def table(self) -> pa.Table:
        """The table of all samples added so far."""
        self._pack()
        return pa.concat_tables(self._packed).combine_chunks()

    def _pack(self) -> None:
        self._packed.append(pa.table(self._columns, schema=_SCHEMA))
        for values in self._columns.values():
            values.clear()

    def add(self, key: str, parts: list[Member], label: int | None, problem: str | None) -> None:
        """Append a sample; the first of its parts that is an image becomes its image."""
        image = next((part for part in parts if naming.is_image(part.ext)), None)
        others = [part._asdict() for part in parts if part is not image]
        if image is None:
            image, problem = Member("", 0, 0), problem or _no_image(parts)
        self.append(key, *image, label, others, problem)


@dataclass(frozen=True, eq=False)
class Members:
    """A table of all samples of one shard, in the shard's order.

    Args:
        table: one row a sample: `key`; `ext`, `offset`, `size` of its image (`ext` empty where it has none); `label` (int32, null
            where it has none); `others`, its further members; `problem`, why the sample will be quarantined, or null.
        shard_bytes: size of the shard that the table describes.
        digest: of the shard's headers, labels and the beginnings of its members, hexadecimal, where it was scanned.
        unread: how many samples have a `cls` that is no class number, where it was scanned.
        text: the first such sample: its key and the content of its `cls`.
    """

    table: pa.Table
    shard_bytes: int
    digest: str | None = None
    unread: int = 0
    text: str = ""

    @classmethod
    def of(cls, rows: MemberRows, shard_bytes: int) -> Members:
        """The table of the samples added to `rows`."""
        return cls(rows.table(), shard_bytes)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def keys(self) -> list[str]:
        """The samples' keys."""
        return self.table.column("key").to_pylist()

    @property
    def labels(self) -> np.ndarray:
        """int64 of shape (n,): the label, -1 where there is none."""
        return self.table.column("label").fill_null(-1).to_numpy().astype(np.int64)

    @property
    def ids(self) -> np.ndarray:
        """uint64 of shape (n,): the samples' ids, see `pipeline.draws.sample_id`."""
        return np.fromiter(map(sample_id, self.keys), np.uint64, len(self))

    def take(self, rows: np.ndarray) -> Members:
        """The samples of the given rows, in the given order."""
        return Members(self.table.take(pa.array(rows, pa.int64())), self.shard_bytes)

    def preferring(self, image: str) -> Members:
        """The same samples, each with its member of the given extension as its image.

        A member whose whole extension matches (`left.jpg`) is preferred to one of which only the last part matches.
        """
        wanted = image.lower().lstrip(".")
        rows = MemberRows()
        for row in (row for batch in self.table.to_batches(_BATCH) for row in batch.to_pylist()):
            parts = sorted(parts_of(row), key=lambda part: part.offset)
            whole = [part for part in parts if part.ext == wanted]
            fitting = sorted(
                (part for part in parts if part.ext.endswith("." + wanted)), key=lambda part: part.ext == naming.MASK
            )
            chosen = next(iter(whole or fitting), None)
            problem = None if row["problem"] == _no_image(parts) else row["problem"]
            if chosen is None:
                there = ", ".join(part.ext for part in parts)
                chosen, problem = Member("", 0, 0), problem or f"no member with extension {wanted} (there are: {there})"
            others = [part._asdict() for part in parts if part is not chosen]
            rows.append(row["key"], *chosen, row["label"], others, problem)
        return Members.of(rows, self.shard_bytes)

    def clips(self, frames: int, image: str | None = None) -> Members:
        """The same samples as clips, whose images are frames in the natural order of their extensions (`2.jpg` before `10.jpg`).

        The first frame becomes the sample's image, and the others come first among its further members.

        Args:
            frames: images that each sample must have; one with another number gets a `problem`.
            image: extension of the members that are frames; None takes all images.
        """
        wanted = image.lower().lstrip(".") if image else None
        rows = MemberRows()
        for row in (row for batch in self.table.to_batches(_BATCH) for row in batch.to_pylist()):
            parts = sorted(parts_of(row), key=lambda part: part.offset)
            shown = [part for part in parts if (f".{part.ext}".endswith(f".{wanted}") if wanted else naming.is_image(part.ext))]
            shown.sort(key=lambda part: naming.natural(part.ext))
            others = [part._asdict() for part in (*shown[1:], *(part for part in parts if part not in shown))]
            problem = row["problem"]
            if len(shown) != frames:
                there = ", ".join(part.ext for part in parts)
                problem = problem or f"{len(shown)} images, and corpus.frames asks for {frames} (there are: {there})"
            rows.append(row["key"], *(shown[0] if shown else Member("", 0, 0)), row["label"], others, problem)
        return Members.of(rows, self.shard_bytes)

    def save(self, url: str) -> None:
        """Write the table as Parquet.

        Raises:
            OSError: the file cannot be written.
        """
        digest = {"digest": self.digest} if self.digest else {}
        about = json.dumps({"version": VERSION, "shard_bytes": self.shard_bytes, **digest})
        with write_atomic(url) as file:
            pq.write_table(self.table.replace_schema_metadata({_METADATA: about}), file, compression="zstd")

    @classmethod
    def load(cls, url: str) -> Members:
        """Read what `save` wrote.

        Raises:
            OSError: the file is missing or cannot be read.
            DamagedIndex: its content is impossible.
            ValueError: the file is no such table, or one of another version.
        """
        content = read_all(url)
        try:
            table = pq.ParquetFile(pa.BufferReader(content)).read()
        except (pa.ArrowException, OSError) as error:  # pyarrow raises OSError for damaged pages, too
            raise DamagedIndex(f"{url}: damaged: {error}") from None
        try:
            about = json.loads((table.schema.metadata or {}).get(_METADATA, b"{}"))
        except ValueError:
            about = None
        if not isinstance(about, dict) or about.get("version") != VERSION or not table.schema.equals(_SCHEMA):
            raise ValueError(f"{url}: not a table of members of version {VERSION}")
        table = _without_label_problems(table)
        if wrong := _impossible(table, about.get("shard_bytes")):
            raise DamagedIndex(f"{url}: damaged: {wrong}")
        return cls(table, about["shard_bytes"], about.get("digest"))


def _without_label_problems(table: pa.Table) -> pa.Table:
    """The table without the problems that earlier versions gave to samples with an unreadable `cls`: those only have no label."""
    place, problem = table.schema.get_field_index("problem"), table.column("problem")
    mended = pc.if_else(pc.fill_null(pc.starts_with(problem, _LABEL_PROBLEM), False), None, problem)
    return table.set_column(place, _SCHEMA.field("problem"), mended)


def _impossible(table: pa.Table, shard_bytes: Any) -> str | None:
    """Why a table cannot come from a scan of a shard, in words; None where it can."""
    if not isinstance(shard_bytes, int) or shard_bytes < 0:
        return f"it gives {shard_bytes!r} as its shard's bytes"
    lists = table.column("others")
    others = pc.list_flatten(lists).combine_chunks()
    if lists.null_count or others.null_count:
        return "it has no list of members where there must be one"
    if len(table) and pc.min(pc.binary_length(table.column("key"))).as_py() == 0:
        return "it has an empty key"
    if (least := pc.min(table.column("label")).as_py()) is not None and least < 0:
        return f"it has a label of {least}"
    for parts in (table, pa.table(others.flatten(), names=[part.name for part in _PART])):
        for name in ("key", "ext", "offset", "size"):
            if name in parts.column_names and parts.column(name).null_count:
                return f"it has a member without {name}"
        for name in ("key", "ext"):
            if name in parts.column_names and pc.any(pc.match_substring_regex(parts.column(name), naming.UNSAFE)).as_py():
                return f"it has a {name} that no sample has"
        offset, size = parts.column("offset").to_numpy(), parts.column("size").to_numpy()
        if ((offset < 0) | (size < 0) | (size > shard_bytes) | (offset > shard_bytes - size)).any():
            return f"it has a member that lies outside of the shard's {shard_bytes} bytes"
    return None


def sidecar(shard: str) -> str | None:
    """URL of the file beside a shard that holds its members; None where the shard's URL has a query or does not end in `.tar`."""
    has_query = "?" in shard and not is_local(shard)
    return None if has_query or not shard.endswith(".tar") else shard.removesuffix(".tar") + ".members.parquet"


def sidecar_in(index: str, shard: str) -> str | None:
    """URL of the file that holds a shard's members in the folder `index`, which has a subfolder for each folder of shards.

    It is the same however the shard's URL is signed; None where a query may choose what the URL stands for.
    """
    plain = unsigned(shard)
    if plain is None or not plain.endswith(".tar"):
        return None
    folder, _, name = plain.rpartition("/")
    return f"{join(index, f'{hash64(folder):016x}')}/{name.removesuffix('.tar')}.members.parquet"


def parts_of(row: dict[str, Any]) -> list[Member]:
    """All members of a row of the table."""
    image = [Member(row["ext"], row["offset"], row["size"])] if row["ext"] else []
    return [*(Member(**part) for part in row["others"]), *image]


def _no_image(parts: list[Member]) -> str:
    return f"no image member (there are: {', '.join(part.ext for part in parts)})"
