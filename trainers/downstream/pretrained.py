"""Reads the pretrained backbone of a run's folder, lists where its recipe differs, and finds which layers are trained."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.recipe.schema import Recipe
from pipeline.recipe.transfer import TransferStart
from pipeline.storage import absolute, exists, read_all, scrubbed_document, without_secrets
from trainers.networks.backbones import Backbone
from trainers.networks.weight_files import weights_of
from trainers.running.runs import BACKBONE, HEAD, RECIPE, RunFolder, differences

log = logging.getLogger(__name__)

VECTOR = "feature vector"
"""Name, in results, of the layer that is taken by default: the feature vector that the network's own classifier sees."""


@dataclass(frozen=True)
class Pretrained:
    """A pretrained backbone.

    Args:
        weights: tensors by torchvision's names.
        identity: of the pretraining, see `RunFolder.identity`.
        tasks: the pretext tasks, if the run's folder names them.
        differs: keys in which the present recipe differs, with both values.
    """

    weights: dict[str, Any]
    identity: str
    tasks: tuple[str, ...]
    differs: dict[str, list[Any]]


def read_pretrained(recipe: Recipe) -> Pretrained:
    """Read the backbone in the recipe's run folder; warns if it was pretrained with another recipe.

    Raises:
        UserError: there is no backbone, or it is of another network than the recipe's.
    """
    folder = RunFolder(recipe)
    saved = _read(folder, recipe)
    document = folder.read_json(RECIPE) or {}
    found = differences(document, scrubbed_document(recipe.model_dump(mode="json"))) if document else []
    if saved["identity"] != folder.identity("pretrain"):
        shown = [str(difference) for difference in found if not difference.key.startswith("downstream")]
        what = ", ".join(shown[:6]) + (", …" if len(shown) > 6 else "")
        log.warning(
            "%s was pretrained with another recipe%s; results are of this backbone, and say so",
            *(folder.path(BACKBONE), f": {what}" if shown else ""),
        )
    return Pretrained(
        saved["backbone"], saved["identity"], tuple(document.get("tasks", ())), {key: [was, now] for key, was, now in found}
    )


def started(recipe: Recipe, inits: Sequence[str]) -> Pretrained:
    """The run's backbone; where only random weights are asked for, one without weights."""
    return read_pretrained(recipe) if "pretrained" in inits else Pretrained({}, "random", (), {})


def read_start(recipe: Recipe, start: TransferStart) -> Pretrained:
    """Read the weights of a start of `transfer`; without any weights for a random one.

    Raises:
        UserError: there are none, or they are of another network than the recipe's.
    """
    if start.run is not None:
        url = absolute(start.run).rstrip("/")
        runs, _, name = url.rpartition("/")
        folder = RunFolder(recipe.model_copy(update={"name": name, "storage": recipe.storage.model_copy(update={"runs": runs})}))
        saved = _read(folder, recipe)
        return Pretrained(saved["backbone"], saved["identity"], tuple((folder.read_json(RECIPE) or {}).get("tasks", ())), {})
    if start.weights is not None:
        shown = without_secrets(start.weights)
        if not exists(start.weights):
            raise UserError(f"{shown}: no such file")
        content = read_all(start.weights)
        state, _ = weights_of(content, start.weights, shown)
        return Pretrained(state, hashlib.sha256(content).hexdigest()[:12], (), {})
    return Pretrained({}, "random", (), {})


def _read(folder: RunFolder, recipe: Recipe) -> dict[str, Any]:
    saved = folder.read_weights(BACKBONE)
    held, asked = saved["spec"], recipe.training.backbone.architecture()
    if held != asked:
        raise UserError(f"{folder.path(BACKBONE)} holds {held}, the recipe asks for {asked}")
    return saved


@dataclass(frozen=True)
class ClassHead:
    """The classifier that pretraining has learnt on the feature vector, from the images' own classes.

    Args:
        weight: float32 (classes, width); with `bias`, (classes,).
        classes: their names.
        labels: number of images whose classes pretraining knew.
    """

    weight: np.ndarray
    bias: np.ndarray
    classes: tuple[str, ...]
    labels: int

    def named(self, vectors: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """The place in `names` of the class of each vector, float (n, width): int64 (n,), -1 where it is not among them."""
        places = np.array([names.index(name) if name in names else -1 for name in self.classes])
        found: np.ndarray = places[(vectors @ self.weight.T + self.bias).argmax(1)]
        return found


def read_head(recipe: Recipe, identity: str, names: Sequence[str]) -> ClassHead | None:
    """The head of a pretraining of that identity; None if it has learnt no classes, or none of the `names` (which is logged)."""
    folder = RunFolder(recipe)
    if not exists(folder.path(HEAD)) or (saved := folder.read_weights(HEAD))["identity"] != identity:
        return None
    if not set(saved["classes"]) & set(names):
        log.warning("the classes that pretraining has learnt are none of those of `downstream`, so its own head is not judged")
        return None
    weight, bias = (saved["classifier"][f"head.{part}"].numpy() for part in ("weight", "bias"))
    return ClassHead(weight, bias, tuple(saved["classes"]), saved["labels"])


def trained_layer(network: Backbone, wanted: str | None, missing: Sequence[str], tasks: Sequence[str], key: str) -> str | None:
    """The layer to take features from, None for the feature vector: the one asked for, else the deepest that is all trained.

    Args:
        network: the network, with the weights loaded.
        wanted: name of the layer that was asked for, or None.
        missing: weights that were not among those loaded, see `Backbone.load`.
        tasks: the pretext tasks, where they are known.
        key: what asks for the layer, for errors.

    Raises:
        UserError: there is no such layer, or it was not trained.
    """
    try:
        lacking = network.lacking(wanted, missing)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    if not lacking:
        return wanted
    deepest = network.map_layer
    if wanted is None and deepest is not None:
        return deepest
    named = f" ({', '.join(tasks)})" if tasks else ""
    raise UserError(
        f"{key}: {wanted or VECTOR} was not trained: the pretext tasks{named} read a map before it, and "
        f"{len(lacking)} of its weights, such as {lacking[0]}, are still random; "
        + (f"take {deepest} or a layer before it" if deepest else "add a task that reads the whole network, such as rotation")
    )
