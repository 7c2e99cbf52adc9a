"""Classification as a downstream problem: one class for each image, judged by accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from pipeline.errors import UserError
from pipeline.recipe.schema import Recipe
from pipeline.shards.corpus import Corpus
from pipeline.storage import without_secrets
from pipeline.targets import ClassTarget
from trainers.downstream.classes import ClassMap, class_map
from trainers.downstream.classifier import OBJECTIVE, Classifier
from trainers.downstream.passes import Batch
from trainers.downstream.problem import DownstreamProblem, Judgement
from trainers.downstream.scores import most_frequent, score
from trainers.networks.precision import autocast

Answers = tuple[int, np.ndarray]
"""How many images were classified correctly, and how many of each label were tested, int64 (classes,)."""


class Classification(DownstreamProblem):
    """The class is a sample's `cls`."""

    objective = OBJECTIVE
    metric = "accuracy"
    weights = "classifier"
    probes = True

    def class_map(self, train: Corpus, test: Corpus) -> ClassMap:
        _refuse_text(train, "train")
        _refuse_text(test, "test")
        return class_map(train, test)

    def target(self, labels: dict[int, int]) -> ClassTarget:
        return ClassTarget(labels)

    def build(self, recipe: Recipe, classes: int, weights: dict[str, Any] | None) -> Classifier:
        return Classifier(recipe, classes, weights)

    def test(self, model: Classifier, batches: Iterable[Batch], recipe: Recipe, classes: int) -> Answers:
        return count_right(model, batches, recipe, classes)

    def judge(self, parts: Sequence[Answers], classes: ClassMap) -> Judgement:
        right, labels = sum(part[0] for part in parts), np.sum([part[1] for part in parts], axis=0)
        tested = int(labels.sum())
        return Judgement(score(right / tested, tested), tested, most_frequent(labels))


@torch.inference_mode()
def count_right(model: Classifier, batches: Iterable[Batch], recipe: Recipe, classes: int) -> Answers:
    """Count the images that a network classifies correctly, with batch normalisation and dropout as in evaluation."""
    right, labels = 0, np.zeros(classes, np.int64)
    model.eval()
    for batch in batches:
        if len(batch.labels):
            with autocast(batch.image.device, recipe.training.precision):
                named = model.logits(batch.image).argmax(1).cpu().numpy()
            right += int((named == batch.labels).sum())
            labels += np.bincount(batch.labels, minlength=classes)
    return right, labels


def _refuse_text(corpus: Corpus, side: str) -> None:
    found = ((i, text) for i, count in enumerate(corpus.counts) if count for text in corpus.unread_labels(i))
    if first := next(found, None):
        raise UserError(
            f"downstream.{side}: {without_secrets(corpus.urls[first[0]])}: the `cls` of {first[1]} is no class number: write "
            "numbers from 0 there, or put the images into a folder per class and pack them: pseudolabel pack SRC DST"
        )
