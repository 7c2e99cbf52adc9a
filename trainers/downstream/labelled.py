"""The labelled corpora of a downstream task, as sources of images."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from pipeline.shards.label_share import select_share
from pipeline.shards.opening import open_corpus
from pipeline.storage import absolute
from pipeline.targets import Target
from trainers.downstream.classes import ClassMap
from trainers.downstream.problem import DownstreamProblem
from trainers.downstream.problems import problem_of
from trainers.running.runs import RunFolder

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

    @property
    def problem(self) -> DownstreamProblem:
        """The problem of its `downstream` section."""
        return problem_of(self.spec)

    def training(self) -> UnitSource:
        """Epochs of randomly cropped training images, the last batch of each filled up."""
        target = self.problem.target(self.classes.train)
        schedule = Schedule(self.train.counts, self._geometry(target), self.recipe.seed, self.spec.epochs, tail="wrap")
        return UnitSource(self.recipe, self.train, schedule, target=target)

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

    def measured(self, tested: int, chance: float) -> dict[str, Any]:
        """What was measured on, for the rows of a result.

        Args:
            tested: images that were tested.
            chance: the measure of always naming the most frequent class of those tested.

        Returns:
            `test`, where its shards lie; `classes` in both sets together; `tested` of `total` images; `chance`.
        """
        return {
            "test": list(self.tested),
            "classes": len(self.classes.names),
            "tested": tested,
            "total": self.test.samples,
            "chance": chance,
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
        target = self.problem.target(labels)
        schedule = Schedule(corpus.counts, self._geometry(target), self.recipe.seed, 1, tail="pad", shuffle=shuffle)
        return UnitSource(self.recipe, corpus, schedule, center=True, target=target)

    def _geometry(self, target: Target) -> Geometry:
        row = row_bytes(self.recipe) + target.row_bytes(self.recipe.image.size)
        geometry = Geometry.of(OrderSection(), self.spec.batch, row)
        geometry.check_workers(self.recipe.training.most_workers)
        return geometry


def for_each_share(recipe: Recipe, result: str, run: Callable[[Recipe], dict[str, Any]]) -> dict[str, Any]:
    """Run a command for each share of the labels that the recipe names, the smallest first.

    Args:
        recipe: the recipe.
        result: the file of the command's result in the run's folder, which gets the rows of all shares.
        run: the command, for a recipe of one share.

    Returns:
        The result of the largest share, with the rows of all.
    """
    spec = recipe.downstream
    if spec is None or len(spec.shares) == 1:
        return run(recipe)
    of_one = (spec.model_copy(update={"labels": share}) for share in spec.shares)
    parts = [run(recipe.model_copy(update={"downstream": one})) for one in of_one]
    rows = {(row["init"], row["protocol"], row["labels"]): row for part in parts for row in part["downstream"]}
    differs = {key: values for key, values in parts[-1]["differs"].items() if key != "downstream.labels"}
    outcome = {**parts[-1], "downstream": list(rows.values()), "differs": differs}
    RunFolder(recipe).write_json(result, outcome)
    return outcome


def open_labelled(recipe: Recipe) -> Labelled:
    """Open the recipe's labelled corpora, with the largest of its shares, and warn of classes that only one of them has.

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
    problem = problem_of(spec)
    problem.check()
    classes = problem.class_map(train, test)
    train, test = (replace(side, target=problem.target({}).member) for side in (train, test))
    for words in classes.warnings():
        log.warning("%s", words)
    single = recipe.corpus.model_copy(update={"frames": None})
    return Labelled(
        recipe=settled(recipe.model_copy(update={"tasks": {}, "corpus": single})),
        spec=spec,
        train=train if spec.shares[-1] == 1 else select_share(train, spec.shares[-1], recipe.seed),
        test=test,
        classes=classes,
        tested=tuple(absolute(url) for url in ([spec.test] if isinstance(spec.test, str) else spec.test)),
    )
