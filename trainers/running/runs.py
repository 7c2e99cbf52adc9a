"""The folder of a run: results as JSON, weights and checkpoints, under `storage.runs`."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.recipe.schema import Recipe
from pipeline.rendering.engine import settled
from pipeline.shards.annotations import KEPT, tables_digest
from pipeline.storage import (
    absolute,
    exists,
    is_local,
    join,
    make_folder,
    names,
    read_all,
    remove,
    scrubbed_document,
    walk,
    without_secrets,
    write_atomic,
)

# Keys that change where and how fast a run goes, but not what it computes: a run can resume with other values of these.
_CIRCUMSTANCES: dict[str, Any] = {
    "placement": True,
    "failures": True,
    "render": True,
    "storage": True,
    "tracking": True,
    "transfer": True,
    "corpus": {"index"},
    "rounds": {"keep"},
    "training": {"workers", "resize_seconds", "cpus", "gpus", "threads", "keep", "log_steps", "checkpoint_epochs"},
}

_STAGE = re.compile(r"(pretrain|finetune-pretrained|finetune-random|evaluate)-[0-9a-f]{12}")
_LONGEST = 60  # of a value in words

BACKBONE, CLASSIFIER, HEAD, RECIPE = "backbone.pt", "classifier.pt", "head.pt", "recipe.json"
PRETRAINED, EVALUATED, FINETUNED = "pretrain.json", "evaluate.json", "finetune.json"
EXAMPLES, ANSWERS, FINDINGS = "examples.npz", "finetune.npz", "evaluate.npz"
"""Files of a run's folder: weights, recipe, the result of each command, and pictures."""


class Difference(NamedTuple):
    """A key of the recipe in which two documents differ, with both values; None where one has no such key."""

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} (was {shortened(self.was)}, now {shortened(self.now)})"


def differences(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[Difference]:
    """List the keys in which two recipes differ, given as in `Recipe.model_dump(mode="json")` or `recipe.json`.

    Args:
        was: one document.
        now: the other.
        prefix: put before each key.

    Returns:
        The keys that differ, dotted, in the order of the documents; a section that one of them lacks is a key by itself.
    """
    found: list[Difference] = []
    for key in [*was, *(key for key in now if key not in was)]:
        one, other = was.get(key), now.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differences(one, other, f"{prefix}{key}.")
        elif one != other:
            found.append(Difference(f"{prefix}{key}", one, other))
    return found


def decisive(document: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """The part of a recipe's document that decides what a stage computes."""
    left_out = {**_CIRCUMSTANCES, **({"downstream": True} if stage == "pretrain" else {})}
    kept = {key: value for key, value in document.items() if left_out.get(key) is not True}
    return {
        key: {inner: v for inner, v in value.items() if inner not in left_out[key]} if key in left_out else value
        for key, value in kept.items()
    }


class RunFolder:
    """Names, reads and writes the files of a run.

    Args:
        recipe: its `storage.runs` and `name` say where.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.url = join(absolute(recipe.storage.runs), recipe.name)

    def make(self) -> None:
        """Make the folder where storage has folders."""
        make_folder(self.url)

    def path(self, name: str) -> str:
        """URL of a file of the run."""
        return join(self.url, name)

    def identity(self, stage: str) -> str:
        """A short name for what a stage computes: equal for recipes that differ only in circumstances."""
        content = decisive(settled(self._recipe).model_dump(mode="json"), stage)
        if self._recipe.training.backbone.weights is not None:  # what the file holds decides, not where it lies
            content["training"]["backbone"]["weights"] = self._digest
        for name, spec in self._recipe.corpus.annotations.items():  # likewise
            content["corpus"]["annotations"][name]["table"] = tables_digest(f"corpus.annotations.{name}", spec.table)
        if (kept := self._recipe.corpus.keep) is not None:
            content["corpus"]["keep"]["table"] = tables_digest(KEPT, kept.table)
        return hashlib.sha256(json.dumps([stage, content], sort_keys=True).encode()).hexdigest()[:12]

    @cached_property
    def _digest(self) -> str:
        """SHA-256 of the given weights, hexadecimal; their file is read once."""
        url = self._recipe.training.backbone.weights
        assert url is not None
        try:
            return hashlib.sha256(read_all(url)).hexdigest()
        except FileNotFoundError:
            raise UserError(f"training.backbone.weights: {without_secrets(url)}: no such file") from None

    def checkpoints(self, stage: str) -> str:
        """Folder of a stage's checkpoints; recipes that compute something else have another one."""
        return self.path(f"{stage}-{self.identity(stage)}")

    def stages(self, prefix: str = "") -> list[str]:
        """Names of the folders of stages, of any recipe, that start with `prefix`."""
        return [name for name in names(self.url) if name.startswith(prefix) and _STAGE.fullmatch(name)]

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file atomically, without the secrets in its URLs."""
        with write_atomic(self.path(name)) as file:
            file.write(json_bytes(scrubbed_document(content)))

    def read_json(self, name: str) -> Any | None:
        """A JSON file of the run, or None if there is none."""
        return read_json(self.path(name))

    def remove(self, name: str) -> None:
        """Delete a file of the run, if it is there."""
        remove(self.path(name))

    def clear(self, name: str) -> None:
        """Delete a folder of the run, if it is there."""
        place = self.path(name)
        if not exists(place):
            return
        if is_local(place):
            shutil.rmtree(absolute(place))
            return
        for file, _ in walk(place):
            remove(join(place, file))

    def write_weights(self, name: str, content: dict[str, Any]) -> None:
        """Write tensors and plain data."""
        import torch

        buffer = io.BytesIO()
        torch.save(content, buffer)
        with write_atomic(self.path(name)) as file:
            file.write(buffer.getvalue())

    def read_weights(self, name: str) -> dict[str, Any]:
        """Read weights that the run has written.

        Raises:
            UserError: there are none yet.
        """
        if not exists(self.path(name)):
            raise UserError(f"no pretrained backbone at {self.path(name)}: run `pseudolabel pretrain` with this recipe first")
        return read_weights(self.path(name))


def json_bytes(content: Any) -> bytes:
    """A document as JSON, the way all results are written."""
    return json.dumps(content, indent=1).encode()


def read_json(url: str) -> Any | None:
    """A JSON file, or None if there is none."""
    return json.loads(read_all(url)) if exists(url) else None


def read_weights(url: str) -> dict[str, Any]:
    """Read a file that `torch.save` wrote: tensors, on the CPU, and plain data only."""
    import torch

    content: dict[str, Any] = torch.load(io.BytesIO(read_all(url)), map_location="cpu", weights_only=True)
    return content


def shortened(value: Any) -> str:
    """A value of a recipe in words of bounded length."""
    text = "not set" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
