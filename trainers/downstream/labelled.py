"""The labelled corpora of a downstream task, as sources of images, and the pretrained weights to try on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.engines import settled
from pipeline.errors import UserError
from pipeline.order import Geometry, Schedule
from pipeline.recipe.schema import Downstream, Order, Recipe
from pipeline.shards.corpus import Corpus
from pipeline.shards.opening import open_corpus
from pipeline.units import Source, row_bytes
from trainers.pretraining import BACKBONE
from trainers.runs import RunFolder

INITS = ("pretrained", "random")


@dataclass(frozen=True)
class Labelled:
    """A downstream task's data.

    Args:
        recipe: the run's recipe without pretext tasks and frames, so that what is rendered is the image alone.
        spec: its `downstream` section.
        train: labelled samples to learn from, already reduced to the recipe's share.
        test: labelled samples to test on.
        classes: number of classes.
        chance: accuracy of always naming the test set's most frequent class.
    """

    recipe: Recipe
    spec: Downstream
    train: Corpus
    test: Corpus
    classes: int
    chance: float

    def training(self) -> Source:
        """Epochs of randomly cropped training images, the last batch of each filled up."""
        schedule = Schedule(self.train.counts, self._geometry(), self.recipe.seed, self.spec.epochs, tail="wrap")
        return Source(self.recipe, self.train, schedule)

    def once(self, corpus: Corpus) -> Source:
        """Every image of a corpus once, its centre, in order."""
        schedule = Schedule(corpus.counts, self._geometry(), self.recipe.seed, 1, tail="pad", shuffle=False)
        return Source(self.recipe, corpus, schedule, center=True)

    def _geometry(self) -> Geometry:
        geometry = Geometry.of(Order(), self.spec.batch, row_bytes(self.recipe))
        geometry.check_workers(self.recipe.training.most_workers)
        return geometry


def open_labelled(recipe: Recipe) -> Labelled:
    """Open the recipe's labelled corpora.

    Raises:
        UserError: no `downstream` section, no labels, or labels that do not agree.
    """
    spec = recipe.downstream
    if spec is None:
        raise UserError(
            "the recipe has no `downstream` section; it names the labelled shards: downstream.train and downstream.test"
        )
    train, test = (open_corpus(shards, recipe.corpus.image) for shards in (spec.train, spec.test))
    _refuse_text(train, "train")
    _refuse_text(test, "test")
    if train.classes != test.classes:
        raise UserError(
            f"downstream.train has the classes {_some(train.classes)}, downstream.test {_some(test.classes)}: "
            "the same number would mean different things; pack both from folders of the same names"
        )
    labels = {name: _labels(corpus) for name, corpus in (("train", train), ("test", test))}
    for name, found in labels.items():
        if (found < 0).all():
            raise UserError(
                f"downstream.{name} has no labels: pack it with `--labels folder`, or give each sample a `cls` member"
            )
    classes = int(max(found.max() for found in labels.values())) + 1
    if classes < 2:
        raise UserError("the downstream task has one class only; it needs two at least")
    known = labels["test"][labels["test"] >= 0]
    single = recipe.corpus.model_copy(update={"frames": None})
    return Labelled(
        recipe=settled(recipe.model_copy(update={"tasks": {}, "corpus": single})),
        spec=spec,
        train=train if spec.labels == 1 else train.select_share(spec.labels, recipe.seed),
        test=test,
        classes=classes,
        chance=float(np.bincount(known).max() / len(known)),
    )


def _refuse_text(corpus: Corpus, side: str) -> None:
    text = next((text for i, count in enumerate(corpus.counts) if count for text in corpus.unread_labels(i)), None)
    if text:
        raise UserError(
            f"downstream.{side}: the `cls` of {text} is no class number: write numbers from 0 there, or pack a folder per class"
        )


def pretrained(recipe: Recipe) -> tuple[dict[str, Any], str]:
    """The weights that the run's pretraining left, and the name of what it computed (`RunFolder.identity`).

    Raises:
        UserError: there are none, or they belong to another network than the recipe's.
    """
    folder = RunFolder(recipe)
    saved = folder.read_weights(BACKBONE)
    if saved["spec"] != recipe.training.backbone.model_dump():
        raise UserError(
            f"{folder.path(BACKBONE)} holds {saved['spec']}, the recipe asks for {recipe.training.backbone.model_dump()}"
        )
    return saved["backbone"], saved["identity"]


def _labels(corpus: Corpus) -> np.ndarray:
    return np.concatenate([corpus.labels(i) for i in range(len(corpus.urls))])


def _some(classes: list[str] | None) -> str:
    if classes is None:
        return "(unnamed)"
    return f"{', '.join(classes[:5])}{', …' if len(classes) > 5 else ''} ({len(classes)})"
