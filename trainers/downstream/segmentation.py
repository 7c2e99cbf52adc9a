"""Segmentation as a downstream problem: a class for each pixel, judged by mean IoU."""

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
from pipeline.targets import MaskTarget
from trainers.downstream.classes import ClassMap, numbered_class_map
from trainers.downstream.overlap import Overlaps
from trainers.downstream.passes import Batch
from trainers.downstream.problem import DownstreamProblem, Judgement
from trainers.downstream.segmenter import OBJECTIVE, Segmenter
from trainers.networks.precision import autocast

SHOWN = 6
"""Test photos that are shown with their masks: those of the lowest ids, on any number of workers."""


@dataclass(frozen=True)
class MaskAnswers:
    """The answers on some test images.

    Args:
        overlaps: counts of all of them.
        ids: uint64 (k,), at most `SHOWN`, ascending: the images that are shown.
        image: uint8 (k, h, w, 3).
        truth: uint8 (k, h, w): their masks.
        answer: uint8 (k, h, w): the predicted masks.
    """

    overlaps: Overlaps
    ids: np.ndarray
    image: np.ndarray
    truth: np.ndarray
    answer: np.ndarray

    def __add__(self, other: MaskAnswers) -> MaskAnswers:
        """The answers on the images of both."""
        ids = np.concatenate([self.ids, other.ids])
        first = np.argsort(ids, kind="stable")[:SHOWN]
        shown = (np.concatenate([getattr(self, name), getattr(other, name)])[first] for name in ("image", "truth", "answer"))
        return MaskAnswers(self.overlaps + other.overlaps, ids[first], *shown)


class Segmentation(DownstreamProblem):
    """The mask is a sample's `seg.png`."""

    objective = OBJECTIVE
    metric = "pixel accuracy"
    weights = "segmenter"

    def class_map(self, train: Corpus, test: Corpus) -> ClassMap:
        return numbered_class_map(train, test, "--masks")

    def target(self, labels: dict[int, int]) -> MaskTarget:
        return MaskTarget(labels)

    def build(self, recipe: Recipe, classes: int, weights: dict[str, Any] | None) -> Segmenter:
        return Segmenter(recipe, classes, weights)

    @torch.inference_mode()
    def test(self, model: Segmenter, batches: Iterable[Batch], recipe: Recipe, classes: int) -> MaskAnswers:
        size = recipe.image.size
        no_mask = np.zeros((0, size, size), np.uint8)
        found = MaskAnswers(
            Overlaps.none(classes), np.zeros(0, np.uint64), np.zeros((0, size, size, 3), np.uint8), no_mask, no_mask
        )
        model.eval()
        for batch in batches:
            if len(batch.ids):
                with autocast(batch.image.device, recipe.training.precision):
                    named = model.logits(batch.image).argmax(1).byte().cpu().numpy()
                truth = batch.targets["mask"]
                overlaps = Overlaps.of(batch.ids, truth, named, classes)
                found = found + MaskAnswers(overlaps, batch.ids, batch.image.cpu().numpy(), truth, named)
        return found

    def judge(self, parts: Sequence[MaskAnswers], classes: ClassMap) -> Judgement:
        found: MaskAnswers = reduce(add, parts)
        overlaps = found.overlaps
        ious = {name: float(iou) for name, iou in zip(classes.names, overlaps.ious()) if not np.isnan(iou)}
        score = {
            "measure": "mean_iou",
            "mean_iou": overlaps.mean(),
            "standard_error": overlaps.standard_error(),
            "pixel_accuracy": overlaps.accuracy(),
            "ious": ious,
        }
        pictures = {"image": found.image, "truth": found.truth, "answer": found.answer, "classes": np.array(classes.names)}
        return Judgement(score, len(overlaps.ids), overlaps.trivial(), pictures)
