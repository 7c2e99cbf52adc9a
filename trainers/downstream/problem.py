"""What a downstream problem is: what it reads of the labelled samples, the network that learns it, and how that is judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import nn

from pipeline.recipe.schema import Recipe
from pipeline.shards.corpus import Corpus
from pipeline.targets import Target
from trainers.downstream.classes import ClassMap
from trainers.downstream.passes import Batch
from trainers.networks.backbones import Backbone


class TunedNetwork(nn.Module, ABC):
    """A backbone with a head, all of which is trained; its forward is as described in `trainers.learning.gradients`.

    Attributes:
        backbone: the backbone.
        untrained: names of the backbone's weights that start random although weights were given, since these lack them.
    """

    backbone: Backbone
    untrained: list[str]

    @abstractmethod
    def normalising(self) -> nn.Module:
        """The part that batch normalisation is in, from normalised images to anything; it shares this network's weights."""


@dataclass(frozen=True)
class Judgement:
    """What a network is worth on the test set.

    Args:
        score: what goes into a row of the result: the measure under its name, `standard_error`, and what else is known.
        tested: images that were tested.
        chance: the measure of the trivial answer, which needs no network.
        pictures: arrays for people: `image`, uint8 (k, h, w, 3), what was asked (`truth`) and answered (`answer`) there, and the
            names of the `classes`.
    """

    score: dict[str, Any]
    tested: int
    chance: float
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)


class DownstreamProblem(ABC):
    """A kind of downstream problem; it has no state.

    Attributes:
        objective: name of its one objective, in logs and checkpoints.
        metric: name of the metric of training.
        weights: the tuned network's name: of its file (`<name>.pt`), and inside.
        probes: whether `evaluate` can probe frozen features for it.
    """

    objective: ClassVar[str]
    metric: ClassVar[str]
    weights: ClassVar[str]
    probes: ClassVar[bool] = False

    def check(self) -> None:  # noqa: B027  most judge by what is always there
        """Raise `UserError` where this machine lacks what `judge` needs."""

    @abstractmethod
    def class_map(self, train: Corpus, test: Corpus) -> ClassMap:
        """The classes of both corpora; raises `UserError` where they have none, or none in common."""

    @abstractmethod
    def target(self, labels: dict[int, int]) -> Target:
        """What is read of each sample, with the labels of the corpus's class numbers."""

    @abstractmethod
    def build(self, recipe: Recipe, classes: int, weights: dict[str, Any] | None) -> TunedNetwork:
        """The network to train.

        Args:
            recipe: `training.backbone`, `image` and `downstream` are read.
            classes: number of classes.
            weights: of the backbone, or None to start from random ones (drawn from the recipe's seed).
        """

    @abstractmethod
    def test(self, model: Any, batches: Iterable[Batch], recipe: Recipe, classes: int) -> Any:
        """A rank's part of the test: the answers of `model`, what `build` returned, in evaluation mode; to be gathered."""

    @abstractmethod
    def judge(self, parts: Sequence[Any], classes: ClassMap) -> Judgement:
        """Judge what `test` returned on each of the ranks; called on the first rank alone."""
