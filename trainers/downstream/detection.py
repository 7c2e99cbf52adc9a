"""Detection as a downstream problem: boxes with classes, judged by COCO's average precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch

from pipeline.recipe.schema import Recipe
from pipeline.shards.corpus import Corpus
from pipeline.targets import BoxTarget
from trainers.downstream.average_precision import BoxRows, Precisions, check_installed, constant_boxes, mean
from trainers.downstream.classes import ClassMap, numbered_class_map
from trainers.downstream.detector import OBJECTIVE, Detector
from trainers.downstream.passes import Batch
from trainers.downstream.problem import DownstreamProblem, Judgement
from trainers.networks.precision import autocast

SHOWN = 6
"""Test photos that are shown with their boxes: those of the lowest ids, on any number of workers."""

_AT_75 = 5  # place of the IoU 0.75 among the thresholds


@dataclass(frozen=True)
class BoxAnswers:
    """The answers on n test images.

    Args:
        ids: uint64 (n,), in any order; the images are numbered by their place here.
        truth: their boxes.
        found: the predicted ones.
        shown: int64 (k,), at most `SHOWN`: the images of the lowest ids.
        image: uint8 (k, h, w, 3): these images.
    """

    ids: np.ndarray
    truth: BoxRows
    found: BoxRows
    shown: np.ndarray
    image: np.ndarray

    def __add__(self, other: BoxAnswers) -> BoxAnswers:
        """The answers on the images of both."""
        ids = np.concatenate([self.ids, other.ids])
        behind = np.arange(len(other.ids)) + len(self.ids)
        shown = np.concatenate([self.shown, behind[other.shown]])
        first = np.argsort(ids[shown], kind="stable")[:SHOWN]
        return BoxAnswers(
            ids,
            self.truth + other.truth.renumbered(behind),
            self.found + other.found.renumbered(behind),
            shown[first],
            np.concatenate([self.image, other.image])[first],
        )


class Detection(DownstreamProblem):
    """The boxes are a sample's `boxes.json`. Tests show the whole photo, squeezed to a square, which changes no IoU."""

    objective = OBJECTIVE
    metric = "box IoU"
    weights = "detector"

    def check(self) -> None:
        check_installed()

    def class_map(self, train: Corpus, test: Corpus) -> ClassMap:
        return numbered_class_map(train, test, "--voc or --coco", least=1)

    def target(self, labels: dict[int, int]) -> BoxTarget:
        return BoxTarget(labels)

    def build(self, recipe: Recipe, classes: int, weights: dict[str, Any] | None) -> Detector:
        return Detector(recipe, classes, weights)

    @torch.inference_mode()
    def test(self, model: Detector, batches: Iterable[Batch], recipe: Recipe, classes: int) -> BoxAnswers:
        size, empty = recipe.image.size, np.zeros(0, np.int64)
        parts = [
            BoxAnswers(np.zeros(0, np.uint64), BoxRows.none(), BoxRows.none(), empty, np.zeros((0, size, size, 3), np.uint8))
        ]
        model.eval()
        for batch in batches:
            if len(batch.ids):
                with autocast(batch.image.device, recipe.training.precision):
                    found = [{name: each.cpu().numpy() for name, each in of.items()} for of in model.boxes(batch.image)]
                parts.append(_answers(batch, found))
        return reduce(add, parts)

    def judge(self, parts: Sequence[BoxAnswers], classes: ClassMap) -> Judgement:
        found: BoxAnswers = reduce(add, parts)
        n, order = len(found.ids), np.argsort(found.ids, kind="stable")
        numbers = np.empty(n, np.int64)
        numbers[order] = np.arange(n)  # whatever rank an image was tested on
        truth, boxes = found.truth.renumbered(numbers), found.found.renumbered(numbers)
        precisions = Precisions(n, truth, boxes, len(classes.names))
        by_class = precisions.by_class()
        trivial = Precisions(n, truth, constant_boxes(n, truth), len(classes.names)).by_class()
        score = {
            "measure": "ap",
            "ap": mean(by_class),
            "standard_error": precisions.standard_error(),
            "ap50": mean(by_class[0]),
            "ap75": mean(by_class[_AT_75]),
            "aps": {name: mean(of) for name, of in zip(classes.names, by_class.T) if not np.isnan(of).any()},
            "boxes": int((~truth.crowd).sum()),
            "crowds": int(truth.crowd.sum()),
            "without_boxes": n - len(np.unique(truth.image)),
            "trivial_ap50": mean(trivial[0]),
        }
        shown = numbers[found.shown]
        pictures = {
            "image": found.image,
            "truth": _padded(truth.take(np.flatnonzero(~truth.crowd)), shown),
            "answer": _padded(boxes, shown),
            "classes": np.array(classes.names),
        }
        return Judgement(score, n, mean(trivial), pictures)


def _answers(batch: Batch, found: Sequence[dict[str, np.ndarray]]) -> BoxAnswers:
    """The answers on a batch."""
    image, place = np.nonzero(batch.targets["box_class"] >= 0)
    corners, labels, crowd = (batch.targets[name][image, place] for name in ("boxes", "box_class", "crowd"))
    of = np.repeat(np.arange(len(found)), [len(each["labels"]) for each in found])
    rows = (np.concatenate([each[name] for each in found]) for name in ("boxes", "labels", "scores"))
    shown = np.argsort(batch.ids, kind="stable")[:SHOWN]
    pixels = batch.image[torch.from_numpy(shown).to(batch.image.device)].cpu().numpy()
    return BoxAnswers(batch.ids, BoxRows.of(image, corners, labels, None, crowd), BoxRows.of(of, *rows), shown, pixels)


def _padded(boxes: BoxRows, images: np.ndarray) -> np.ndarray:
    """The boxes of some images, float32 (k, most, 6): corners, class and score; -1 behind the last."""
    parts = [boxes.take(np.flatnonzero(boxes.image == number)) for number in images]
    table = np.full((len(parts), max(map(len, parts), default=0), 6), -1, np.float32)
    for row, of in zip(table, parts):
        row[: len(of)] = np.column_stack([of.corners, of.classes, of.scores])
    return table
