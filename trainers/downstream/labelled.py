"""The labelled corpora of a downstream task, as sources of images."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.draws import permutation
from pipeline.errors import UserError
from pipeline.ordering.order import Geometry, Schedule
from pipeline.recipe.downstream import Downstream
from pipeline.recipe.schema import Recipe
from pipeline.recipe.training import OrderSection
from pipeline.rendering.engine import settled
from pipeline.rendering.units import UnitSource, row_bytes
from pipeline.shards.corpus import Corpus
from pipeline.shards.opening import open_corpus
from pipeline.storage import absolute, without_secrets
from pipeline.targets import ClassTarget
from trainers.downstream.classes import ClassMap, class_map

INITS = ("pretrained", "random")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labelled:
    """A downstream task's data.

    Args:
        recipe: the run's recipe without pretext tasks and frames, so that what is rendered is the image alone.
        spec: its `downstream` section.
        train: labelled samples to learn from, already reduced to the recipe's share.
        test: labelled samples to test on.
        classes: what their labels mean.
        tested: where the test samples lie: absolute paths or URLs, which mean the same on every machine of a cluster.
    """

    recipe: Recipe
    spec: Downstream
    train: Corpus
    test: Corpus
    classes: ClassMap
    tested: tuple[str, ...]

    def training(self) -> UnitSource:
        """Epochs of randomly cropped training images, the last batch of each filled up."""
        schedule = Schedule(self.train.counts, self._geometry(), self.recipe.seed, self.spec.epochs, tail="wrap")
        return UnitSource(self.recipe, self.train, schedule, target=ClassTarget(self.classes.train))

    def training_once(self) -> UnitSource:
        """Every training image once, its centre, in order."""
        return self._once(self.train, self.classes.train, shuffle=False)

    def training_some(self, most: int) -> UnitSource:
        """At most `most` training images, drawn by the seed and shuffled: the centre of each, once."""
        chosen = np.sort(permutation(self.train.samples, "statistics", self.recipe.seed)[:most])
        return self._once(self.train.select(self.train.rows_of(chosen)), self.classes.train, shuffle=True)

    def testing(self) -> UnitSource:
        """Every test image once, its centre, in order."""
        return self._once(self.test, self.classes.test, shuffle=False)

    def measured(self, labels: np.ndarray) -> dict[str, Any]:
        """What accuracies were measured on, for the rows of a result.

        Args:
            labels: int64 (classes,): how many images of each label were tested.

        Returns:
            `test`, where its shards lie; `classes` in both sets together; `tested` of `total` images;
            `chance`, the accuracy of always naming the most frequent class of those tested.
        """
        tested = int(labels.sum())
        return {
            "test": list(self.tested),
            "classes": len(self.classes.names),
            "tested": tested,
            "total": self.test.samples,
            "chance": int(labels.max()) / tested,
        }

    def described(self) -> dict[str, Any]:
        """The classes, for a result: the name of each label, and those that only one of the sets has."""
        return {
            "classes": len(self.classes.names),
            "class_names": list(self.classes.names),
            "only_in_test": list(self.classes.untrained),
            "only_in_train": list(self.classes.untested),
        }

    def _once(self, corpus: Corpus, labels: dict[int, int], shuffle: bool) -> UnitSource:
        schedule = Schedule(corpus.counts, self._geometry(), self.recipe.seed, 1, tail="pad", shuffle=shuffle)
        return UnitSource(self.recipe, corpus, schedule, center=True, target=ClassTarget(labels))

    def _geometry(self) -> Geometry:
        geometry = Geometry.of(OrderSection(), self.spec.batch, row_bytes(self.recipe))
        geometry.check_workers(self.recipe.training.most_workers)
        return geometry


def open_labelled(recipe: Recipe) -> Labelled:
    """Open the recipe's labelled corpora, and warn of classes that only one of them has.

    Raises:
        UserError: no `downstream` section, no labels, or labels that do not agree.
    """
    spec = recipe.downstream
    if spec is None:
        raise UserError(
            "the recipe has no `downstream` section, which names the labelled shards: downstream.train and downstream.test"
        )
    corpus = recipe.corpus
    train, test = (
        open_corpus(shards, corpus.image, index_in=corpus.index, keys=corpus.keys) for shards in (spec.train, spec.test)
    )
    _refuse_text(train, "train")
    _refuse_text(test, "test")
    classes = class_map(train, test)
    for words in classes.warnings():
        log.warning("%s", words)
    single = recipe.corpus.model_copy(update={"frames": None})
    return Labelled(
        recipe=settled(recipe.model_copy(update={"tasks": {}, "corpus": single})),
        spec=spec,
        train=train if spec.labels == 1 else train.select_share(spec.labels, recipe.seed),
        test=test,
        classes=classes,
        tested=tuple(absolute(url) for url in ([spec.test] if isinstance(spec.test, str) else spec.test)),
    )


def _refuse_text(corpus: Corpus, side: str) -> None:
    found = ((i, text) for i, count in enumerate(corpus.counts) if count for text in corpus.unread_labels(i))
    if first := next(found, None):
        raise UserError(
            f"downstream.{side}: {without_secrets(corpus.urls[first[0]])}: the `cls` of {first[1]} is no class number: write "
            "numbers from 0 there, or put the images into a folder per class and pack them: pseudolabel pack SRC DST"
        )
