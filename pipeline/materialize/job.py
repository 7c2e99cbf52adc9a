"""A job: what is made of each shard of a corpus, its identity, and the names of what it writes; and the identity of renders."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any, ClassVar, Protocol

import numpy as np

from pipeline.draws import hash64
from pipeline.errors import RunError, ShardError
from pipeline.materialize.columns import MASK, encoders, stored_columns
from pipeline.materialize.commit import CommitRecord
from pipeline.recipe.schema import Recipe
from pipeline.shards.annotations import KEPT, tables_digest
from pipeline.shards.corpus import Corpus
from pipeline.shards.index import Lookup
from pipeline.storage import absolute, join, without_secrets

VERSION = 1
CHUNK = 64
"""Samples read and rendered at a time; what is written does not depend on it."""

_PACKAGES = ("pseudolabel", "numpy", "opencv-python-headless", "pyarrow", "pillow")
_PLAIN = re.compile(r"[^A-Za-z0-9._-]")
_WHERE_AND_HOW_FAST = {"placement", "failures", "training", "rounds", "downstream", "storage", "tracking"}


def identity_of(recipe: Recipe, engine: dict[str, str], there: dict[str, Any] | None = None) -> dict[str, Any]:
    """Everything that the bytes of an output depend on besides the input shard, as plain data.

    Args:
        recipe: the recipe.
        engine: the engine's own identity, asked of a process like those that render.
        there: the identity of a folder that has one already: where an earlier version left Pillow's out, it stays left out.
    """
    kept = [name for name in _PACKAGES if name != "pillow" or there is None or name in there.get("engine", {})]
    tables = beside(recipe)
    masks = any(column.kind == "mask" for column in stored_columns(recipe)) and recipe.render.format == "webdataset"
    return {
        "version": VERSION,
        **({"masks": f"<task>.{MASK}"} if masks else {}),  # masks had another name before
        "seed": recipe.seed,
        "corpus": recipe.corpus.model_dump(mode="json", include={"image", "frames", "keys"}),
        "image": recipe.image.model_dump(mode="json", exclude={"mean", "std"}),
        "tasks": {name: task.model_dump(mode="json", exclude={"weight", "objective"}) for name, task in recipe.tasks.items()},
        "render": recipe.render.model_dump(mode="json"),
        **({"tables": tables} if tables else {}),
        **({"encoders": made} if (made := encoders(recipe)) else {}),  # OpenCV's before
        "engine": {**engine, **{package: version(package) for package in kept}},
    }


def beside(recipe: Recipe) -> dict[str, Any]:
    """What a recipe takes of tables beside its corpus, with a hash of what they hold in place of where they lie.

    Raises:
        UserError: such a table cannot be read.
    """
    spec = recipe.corpus
    named = {f"corpus.annotations.{name}": each for name, each in spec.annotations.items()} | (
        {KEPT: spec.keep} if spec.keep else {}
    )
    return {
        where: {**each.model_dump(mode="json"), "table": tables_digest(where, each.table)}
        for where, each in sorted(named.items())
    }


def difference(there: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """The keys in which two identities differ, each with both values."""
    found = []
    for key in sorted({*there, *now}):
        a, b = there.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += difference(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {'not there' if a is None else a} in the folder, {'not there' if b is None else b} now")
    return found


def shaping(recipe: Recipe) -> dict[str, Any]:
    """The part of the resolved recipe that the pairs depend on, without the secrets of URLs."""
    document = recipe.model_dump(mode="json", exclude=_WHERE_AND_HOW_FAST)
    shards = recipe.corpus.shards
    plain = [without_secrets(absolute(url)) for url in ([shards] if isinstance(shards, str) else shards)]
    document["corpus"].pop("index", None)
    document["corpus"]["shards"] = plain[0] if isinstance(shards, str) else plain
    for each in (*document["corpus"].get("annotations", {}).values(), *filter(None, [document["corpus"].get("keep")])):
        each["table"] = without_secrets(absolute(each["table"]))
    return document


def kept_recipe(recipe: Recipe) -> dict[str, Any]:
    """What a rendered corpus keeps of its recipe: `shaping`, and where the index of its shards lies."""
    document = shaping(recipe)
    if recipe.corpus.index:
        document["corpus"]["index"] = without_secrets(absolute(recipe.corpus.index))
    return document


OnChunk = Callable[[int, int, list[str], dict[str, float]], None]
"""Called after each chunk of samples, with the arguments of `pipeline.streaming.metrics.Meter.rendered`."""


class OutputError(RunError):
    """The storage refused an output; no shard is to blame."""


class ShardWorker(Protocol):
    """Makes the outputs of one shard after another; made by `Job.worker`, one for each actor."""

    def __call__(self, i: int) -> CommitRecord:
        """Write the outputs of shard `i`, each whole or not at all, but not its commit record.

        Raises:
            ShardError: the shard is damaged, gone, or cannot be read.
            OutputError: the outputs cannot be written.
            RunError: the job cannot go on.
        """


@dataclass(frozen=True)
class Job(ABC):
    """What is made of each shard of a corpus, and where; picklable, for every actor is given it. Renders are one kind of job.

    Args:
        recipe: the recipe; a job takes its name, placement and failure budget from it.
        corpus: the shards.
        out: URL of the folder that is written.
        identity: everything that the bytes of an output depend on besides the input shard, as plain data. It holds `makes`,
            except for a render.
        sums: bytes (shards,), 64 each: a hexadecimal hash of each shard's content, empty where none is known.
        chunk: samples read at a time; what is written does not depend on it.
    """

    command: ClassVar[str]
    """The command, for messages, metrics, and the name of the file that marks an unfinished folder."""
    past: ClassVar[str]
    """What has been done to a finished shard, such as `rendered`."""
    makes: ClassVar[str]
    """What the outputs hold, such as `pairs`."""

    recipe: Recipe
    corpus: Corpus
    out: str
    identity: dict[str, Any]
    sums: np.ndarray
    chunk: int = CHUNK

    @abstractmethod
    def worker(self, threads: int, on_chunk: OnChunk | None = None) -> ShardWorker:
        """What makes the outputs; called in an actor, before its first shard.

        Args:
            threads: CPU threads.
            on_chunk: called after each chunk.

        Raises:
            RunError: this machine would make other bytes than the identity says.
        """

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """What the manifest says of the outputs: plain data that a reader needs."""

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders that its outputs need besides the job's own."""
        return ()

    def document(self) -> dict[str, Any]:
        """The recipe as the folder keeps it."""
        return kept_recipe(self.recipe)

    def prepare(self) -> None:  # noqa: B027  most jobs need nothing
        """Make what all shards need; called before the first shard, each time that the job is started on the folder."""

    def finish(self, outputs: Iterable[str]) -> tuple[str, ...]:
        """Write further files once all shards are done, before the manifest; a second call writes the same.

        Args:
            outputs: the names of the files of all shards.

        Returns:
            The names of the job's files besides these, which the manifest is to check.
        """
        return ()

    @cached_property
    def digest(self) -> str:
        """The identity as a hash, hexadecimal."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    @property
    def unfinished(self) -> str:
        """Name of a file that is in the folder from the start of the job until its manifest is written."""
        return f"{self.command}.unfinished"

    def shard(self, i: int) -> str:
        """The name of input shard `i`: its path below the folder that all shards of the corpus share."""
        return self.corpus.shard_name(i)

    def stem(self, i: int) -> str:
        """The start of the names of shard `i`'s files: a function of the identity, the shard's name and its content."""
        name = self.shard(i)
        plain = _PLAIN.sub("_", name.rpartition("/")[2].removesuffix(".tar"))
        return f"{plain}-{hash64(self.digest, name, int(self.corpus.sizes[i]), self.sums[i].decode()):016x}"

    def url(self, *names: str) -> str:
        """The URL of a file in the output folder."""
        return join(self.out, "/".join(names))


@contextmanager
def writing(out: str) -> Iterator[None]:
    """Raise OSErrors of the outputs as OutputErrors; those of the input shard are ShardErrors already."""
    try:
        yield
    except ShardError:
        raise
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error}") from error


def known_sums(corpus: Corpus) -> np.ndarray:
    """A hash of each shard's content, bytes (shards,): the SHA-256 by its folder's index, else its digest, see `index.Row`."""
    sums = np.full(len(corpus.urls), b"", "S64")
    places: dict[str, list[int]] = {}
    for i, url in enumerate(corpus.urls):
        if "?" not in url:
            places.setdefault(url.rpartition("/")[0], []).append(i)
    for folder, inside in places.items():
        try:
            lookup = Lookup.load(folder)
            for column in ("digest", "sha256"):
                for n, found in lookup.find(column, [corpus.urls[i] for i in inside], corpus.sizes[inside]):
                    sums[inside[n]] = found or sums[inside[n]]
        except (OSError, ValueError):  # no index, or a damaged one: only sizes are known
            continue
    for i, digest in corpus.scanned.items():
        sums[i] = digest
    return sums


def versions() -> dict[str, str]:
    """Versions of the libraries that a render stands on, besides those in its identity."""
    return {package: version(package) for package in ("ray", "torch", "fsspec")}
