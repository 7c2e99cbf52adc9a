"""What a render is: its identity, its shards, and the names of all that it writes."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np

from pipeline.draws import hash64
from pipeline.materialize.columns import MASK, stored_columns
from pipeline.recipe.schema import Recipe
from pipeline.shards.corpus import Corpus
from pipeline.shards.index import Lookup
from pipeline.storage import absolute, join, without_secrets

VERSION = 1
CHUNK = 64
"""Samples read and rendered at a time; what is written does not depend on it."""

_PACKAGES = ("pseudolabel", "numpy", "opencv-python-headless", "pyarrow", "pillow")
_PLAIN = re.compile(r"[^A-Za-z0-9._-]")
_WHERE_AND_HOW_FAST = {"placement", "failures", "training", "downstream", "storage", "tracking"}


def identity_of(recipe: Recipe, engine: dict[str, str], there: dict[str, Any] | None = None) -> dict[str, Any]:
    """All that the bytes of an output depend on besides the input shard: plain data.

    Args:
        recipe: the recipe.
        engine: the engine's own identity, asked of a process like those that render.
        there: the identity of a folder that has one already: where an earlier version left Pillow's out, it stays left out.
    """
    kept = [name for name in _PACKAGES if name != "pillow" or there is None or name in there.get("engine", {})]
    masks = any(column.kind == "mask" for column in stored_columns(recipe)) and recipe.render.format == "webdataset"
    return {
        "version": VERSION,
        **({"masks": f"<task>.{MASK}"} if masks else {}),  # which had another name
        "seed": recipe.seed,
        "corpus": recipe.corpus.model_dump(mode="json", include={"image", "frames", "keys"}),
        "image": recipe.image.model_dump(mode="json", exclude={"mean", "std"}),
        "tasks": {name: task.model_dump(mode="json", exclude={"weight", "objective"}) for name, task in recipe.tasks.items()},
        "render": recipe.render.model_dump(mode="json"),
        "engine": {**engine, **{package: version(package) for package in kept}},
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
    """The resolved recipe as far as it shapes pairs, without what a URL may hold of secrets."""
    document = recipe.model_dump(mode="json", exclude=_WHERE_AND_HOW_FAST)
    shards = recipe.corpus.shards
    plain = [without_secrets(absolute(url)) for url in ([shards] if isinstance(shards, str) else shards)]
    document["corpus"].pop("index", None)
    document["corpus"]["shards"] = plain[0] if isinstance(shards, str) else plain
    return document


def kept_recipe(recipe: Recipe) -> dict[str, Any]:
    """What a rendered corpus keeps of its recipe: `shaping`, and where the index of its shards lies."""
    document = shaping(recipe)
    if recipe.corpus.index:
        document["corpus"]["index"] = without_secrets(absolute(recipe.corpus.index))
    return document


@dataclass(frozen=True)
class RenderJob:
    """A corpus on its way to disk; picklable, and what every actor is given.

    Args:
        recipe: the recipe.
        corpus: the shards.
        out: URL of the folder that is written.
        identity: see `identity_of`.
        sums: bytes (shards,), 64 each: what tells the content of each shard, hexadecimal, empty where nothing does.
        chunk: samples rendered at a time.
    """

    recipe: Recipe
    corpus: Corpus
    out: str
    identity: dict[str, Any]
    sums: np.ndarray
    chunk: int = CHUNK

    @cached_property
    def digest(self) -> str:
        """The identity as a hash, hexadecimal."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

    def shard(self, i: int) -> str:
        """The name of input shard `i`: its path below the folder that all shards of the corpus share."""
        return self.corpus.shard_name(i)

    def stem(self, i: int) -> str:
        """What the files of shard `i` begin with: a function of the identity, the shard's name and its content."""
        name = self.shard(i)
        plain = _PLAIN.sub("_", name.rpartition("/")[2].removesuffix(".tar"))
        return f"{plain}-{hash64(self.digest, name, int(self.corpus.sizes[i]), self.sums[i].decode()):016x}"

    def output(self, i: int, epoch: int) -> str:
        """The file name of one drawing of shard `i`."""
        return f"{self.stem(i)}-e{epoch}.{'tar' if self.recipe.render.format == 'webdataset' else 'parquet'}"

    def url(self, *names: str) -> str:
        """A place in the output folder."""
        return join(self.out, "/".join(names))


def known_sums(corpus: Corpus) -> np.ndarray:
    """Bytes (shards,): what tells a shard's content: its SHA-256 by the index of its folder, else its digest, see `index.Row`."""
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
        except (OSError, ValueError):  # no index, or none that can be used: sizes must do
            continue
    for i, digest in corpus.scanned.items():
        sums[i] = digest
    return sums


def versions() -> dict[str, str]:
    """Versions of the libraries that a render stands on, besides those in its identity."""
    return {package: version(package) for package in ("ray", "torch", "fsspec")}
