"""The result of each input shard on disk: its commit record, written last, or the reason why it failed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import NonNegativeInt, TypeAdapter

from pipeline.errors import RunError
from pipeline.materialize.threads import mapped
from pipeline.storage import is_local, join, names, read_all, write_atomic

COMMITS, FAILED, BAD = "commits", "failed", "quarantine"
"""Folders of the records, of the reasons of failed shards, and of the files that could not be decoded."""

_ENDING = ".json"
_READERS = 32


@dataclass(frozen=True, slots=True)
class Output:
    """A file that was written, with one drawing of a shard."""

    name: str
    bytes: NonNegativeInt
    sha256: str
    pairs: NonNegativeInt


@dataclass(frozen=True, slots=True)
class Bad:
    """A sample that did not become a pair: its row in the shard, the drawing, why, and its image file's size and hash."""

    row: int
    key: str
    epoch: int
    reason: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class CommitRecord:
    """The result of rendering an input shard.

    Args:
        shard: its name in the corpus.
        bytes: its size.
        samples: samples in it.
        outputs: the files that were written, one for each drawing.
        bad: samples that did not become pairs, by drawing and row.
        kept: the tar of the files that could not be decoded, if they are kept and there are any.
    """

    shard: str
    bytes: NonNegativeInt
    samples: NonNegativeInt
    outputs: list[Output]
    bad: list[Bad]
    kept: Output | None = None

    @property
    def quarantined(self) -> int:
        """Samples that are missing from at least one drawing."""
        return len({bad.row for bad in self.bad})

    def save(self, out: str, stem: str) -> None:
        """Write the record, which commits the shard: from then on it is done."""
        write_json(join(out, f"{COMMITS}/{stem}{_ENDING}"), asdict(self))

    @classmethod
    def load(cls, out: str, stem: str) -> CommitRecord:
        """Read what `save` wrote; FileNotFoundError where the shard is not done."""
        return cls.parse(read_all(join(out, f"{COMMITS}/{stem}{_ENDING}")).decode())

    @classmethod
    def parse(cls, text: str) -> CommitRecord:
        """A record from its file's text; ValueError where it is damaged."""
        return _RECORD.validate_json(text, strict=True)


_RECORD = TypeAdapter(CommitRecord)


def committed(out: str) -> set[str]:
    """The stems of all shards that are done, by one listing."""
    return _stems(out, COMMITS)


def failed(out: str) -> set[str]:
    """The stems of all shards that failed."""
    return _stems(out, FAILED)


def save_failure(out: str, stem: str, shard: str, reason: str) -> None:
    """Record why a shard failed."""
    write_json(failure_url(out, stem), {"shard": shard, "reason": reason})


def load_failure(out: str, stem: str) -> dict[str, str]:
    """Name of the shard and reason; where the record is damaged, the stem, and that the reason is not known."""
    url = failure_url(out, stem)
    try:
        found = json.loads(read_all(url))
        return {"shard": str(found["shard"]), "reason": str(found["reason"])}
    except (ValueError, TypeError, KeyError):
        return {"shard": stem, "reason": f"not known, for {url} is damaged"}


def failure_url(out: str, stem: str) -> str:
    """The URL of the record of a shard's failure."""
    return join(out, f"{FAILED}/{stem}{_ENDING}")


def records(out: str, stems: Iterable[str]) -> Iterator[CommitRecord]:
    """The records of some shards, in their order, a few read ahead.

    Raises:
        RunError: one of them is not there, or cannot be read.
    """

    def load(stem: str) -> CommitRecord:
        try:
            return CommitRecord.load(out, stem)
        except FileNotFoundError:
            shared = f"; is {out} a folder that all machines share?" if is_local(out) else ""
            raise RunError(f"{join(out, COMMITS)}: the commit record {stem}{_ENDING} is not there{shared}") from None
        except ValueError:
            raise RunError(
                f"{join(out, COMMITS)}: the commit record {stem}{_ENDING} is damaged; delete it, and the same command renders "
                "its shard again"
            ) from None
        except OSError as error:
            raise RunError(f"{join(out, COMMITS)}: the commit record {stem}{_ENDING} cannot be read: {error}") from None

    return map(load, stems) if is_local(out) else mapped(load, stems, _READERS)


def write_json(url: str, content: Any) -> None:
    """Write a JSON file, whole or not at all; the same content gives the same bytes."""
    with write_atomic(url) as file:
        file.write(json.dumps(content, indent=1).encode() + b"\n")


def _stems(out: str, folder: str) -> set[str]:
    there = names(join(out, folder))
    return {name.removesuffix(_ENDING) for name in there if name.endswith(_ENDING) and not name.startswith(".")}
