"""The protocols that judge frozen features, by the names that a recipe gives them: what each reads, and how it classifies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from pipeline.errors import UserError
from pipeline.recipe.downstream import Downstream
from trainers.downstream.attentive import Positions, look
from trainers.downstream.concatenated import side_by_side
from trainers.downstream.features import FeatureRows, Rank
from trainers.downstream.guesses import Guesses
from trainers.downstream.knn import vote
from trainers.downstream.labelled import Labelled
from trainers.downstream.linear import classify
from trainers.downstream.pretrained import VECTOR
from trainers.networks.backbones import Backbone

Reading = Literal["layer", "map", "layers"]
"""What a protocol reads of a backbone: the probed layer, the last map, or several layers side by side."""

Classified = tuple[Guesses, dict[str, Any]]
"""The guesses of a rank, and what a result says of how they were found."""


@dataclass(frozen=True)
class FeatureProtocol:
    """A way to judge frozen features.

    Args:
        reads: the features that it takes.
        classify: from this rank's training and test features to its guesses; every rank calls it.
    """

    reads: Reading
    classify: Callable[[FeatureRows, FeatureRows, Labelled, Rank], Classified]


def _linear(train: FeatureRows, test: FeatureRows, data: Labelled, rank: Rank) -> Classified:
    guesses, fit = classify(train, test, data.classes.trained, data.recipe.seed, rank)
    return guesses, {"fit": fit}


def _knn(train: FeatureRows, test: FeatureRows, data: Labelled, rank: Rank) -> Classified:
    return vote(train, test, data.classes.trained, data.spec.neighbours, rank), {}


def _attentive(train: FeatureRows, test: FeatureRows, data: Labelled, rank: Rank) -> Classified:
    return look(train, test, data.classes.trained, data.recipe.seed, rank), {}


def _concatenated(train: FeatureRows, test: FeatureRows, data: Labelled, rank: Rank) -> Classified:
    guesses, fit = side_by_side(train, test, data.classes.trained, data.recipe.seed, rank)
    return guesses, {"fit": fit}


PROTOCOLS: dict[str, FeatureProtocol] = {
    "linear": FeatureProtocol("layer", _linear),
    "knn": FeatureProtocol("layer", _knn),
    "attentive": FeatureProtocol("map", _attentive),
    "concatenated": FeatureProtocol("layers", _concatenated),
}


def readings(spec: Downstream) -> list[Reading]:
    """What the protocols of a recipe read, each once."""
    return list(dict.fromkeys(PROTOCOLS[name].reads for name in spec.protocols))


def reader(backbone: Backbone, reads: Reading, spec: Downstream, layer: str | None) -> nn.Module:
    """The network from normalised images to what is read, which shares the backbone's weights; `layer` is the probed one."""
    if reads == "map":
        return Positions(backbone)
    return backbone.embedding(*spec.layers) if reads == "layers" else backbone.embedding(layer)


def read_numbers(backbone: Backbone, reads: Reading, spec: Downstream, layer: str | None) -> int:
    """How many numbers are read of an image; arguments as of `reader`."""
    if reads == "map":
        return backbone.map_width * math.prod(backbone.map_size)
    return backbone.embedding(*(spec.layers if reads == "layers" else (layer,))).width


def read_words(reads: Reading, spec: Downstream, layer: str | None, backbone_map: str | None) -> str:
    """The name of what is read, for results."""
    if reads == "map":
        return backbone_map or "last map"
    return " + ".join(spec.layers) if reads == "layers" else layer or VECTOR


def check_layers(network: Backbone, spec: Downstream, missing: list[str]) -> None:
    """Refuse `downstream.layers` of which one is not there, or was not trained; `missing` as of `Backbone.load`.

    Raises:
        UserError: names the layer.
    """
    for layer in spec.layers:
        try:
            lacking = network.lacking(layer, missing)
        except UserError as error:
            raise UserError(f"downstream.layers: {error}") from None
        if lacking:
            raise UserError(
                f"downstream.layers: {layer} was not trained, and {len(lacking)} of its weights, such as {lacking[0]}, are still "
                f"random; take {network.map_layer} or layers before it"
            )
