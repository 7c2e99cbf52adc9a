"""Average precision is faster-coco-eval's in any order, its standard error the jackknife's; constant boxes are the best ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster

from pipeline.errors import UserError
from trainers.downstream.average_precision import BoxRows, Precisions, constant_boxes, mean


def made(seed: int = 0, images: int = 12) -> tuple[BoxRows, BoxRows]:
    """True boxes of two classes, one of them a crowd, and answers near them and elsewhere."""
    random = np.random.Generator(np.random.Philox(seed))
    n = 30
    corners = np.tile(random.uniform(0, 60, (n, 2)), 2) + np.array([0, 0, *random.uniform(10, 40, 2)])
    truth = BoxRows.of(random.integers(0, images - 1, n), corners, random.integers(0, 2, n), None, np.arange(n) == 3)
    near = corners + random.normal(0, 3, corners.shape)
    found = BoxRows.of(truth.image, near, truth.classes, random.uniform(size=n))
    wrong = BoxRows.of(random.integers(0, images, n), near, random.integers(0, 2, n), random.uniform(size=n))
    return truth, found + wrong


def plain(images: int, truth: BoxRows, found: BoxRows) -> np.ndarray:
    """AP, AP50 and AP75 as faster-coco-eval summarises them."""

    def rows(boxes: BoxRows) -> list[dict]:
        return [
            {
                "id": i + 1,
                "image_id": int(boxes.image[i]),
                "category_id": int(boxes.classes[i]),
                "bbox": [x, y, right - x, bottom - y],
                "area": (right - x) * (bottom - y),
                "iscrowd": int(boxes.crowd[i]),
                "score": float(boxes.scores[i]),
            }
            for i, (x, y, right, bottom) in enumerate(boxes.corners.tolist())
        ]

    categories = [{"id": label, "name": str(label)} for label in range(2)]
    gt = COCO({"images": [{"id": i} for i in range(images)], "categories": categories, "annotations": rows(truth)})
    judge = COCOeval_faster(gt, gt.loadRes(rows(found)), "bbox")
    judge.run()
    return np.array(judge.stats[:3])


def test_it_is_that_of_the_library_in_any_order_of_the_boxes() -> None:
    truth, found = made()
    by_class = Precisions(12, truth, found, 2).by_class()
    assert by_class.shape == (10, 2)
    np.testing.assert_allclose([mean(by_class), mean(by_class[0]), mean(by_class[5])], plain(12, truth, found), atol=1e-9)
    order = np.random.Generator(np.random.Philox(1)).permutation(len(found))
    np.testing.assert_allclose(Precisions(12, truth, found.take(order), 2).by_class(), by_class, atol=1e-9)


def test_known_answers() -> None:
    truth = BoxRows.of([0, 0, 2], [[0, 0, 10, 10], [20, 20, 40, 40], [0, 0, 10, 10]], [0, 0, 1])
    assert mean(Precisions(3, truth, truth, 3).by_class()) == pytest.approx(1)
    assert np.isnan(Precisions(3, truth, truth, 3).by_class()[:, 2]).all()
    assert mean(Precisions(3, truth, BoxRows.none(), 2).by_class()) == 0
    half = BoxRows.of([0], [[0, 0, 10, 10]], [0])
    by_class = Precisions(3, truth, half, 2).by_class()
    assert by_class[:, 0] == pytest.approx(51 / 101)  # recalls 0, 0.01, ..., 0.5
    assert (by_class[:, 1] == 0).all()
    loose = BoxRows.of([2], [[0, 0, 10, 7.6]], [1])
    assert Precisions(3, truth, loose, 2).by_class()[:, 1].tolist() == [1] * 6 + [0] * 4


def test_crowds_are_neither_missed_nor_wrong() -> None:
    truth = BoxRows.of([0, 0], [[0, 0, 10, 10], [20, 20, 60, 60]], [0, 0], None, [False, True])
    inside = BoxRows.of([0, 0], [[25, 25, 35, 35], [0, 0, 10, 10]], [0, 0], [0.9, 0.5])
    assert mean(Precisions(1, truth, inside, 1).by_class()) == pytest.approx(1)
    with pytest.raises(UserError, match="none of its images has a box that counts"):
        Precisions(1, truth.take(np.array([1])), inside, 1)


def test_the_standard_error_is_the_jackknifes_over_images() -> None:
    truth, found = made()
    without = []
    for image in range(12):
        kept = [boxes.take(np.flatnonzero(boxes.image != image)) for boxes in (truth, found)]
        without.append(plain(12, *kept)[0])
    wanted = math.sqrt(11 / 12 * np.square(np.array(without) - np.mean(without)).sum())
    assert Precisions(12, truth, found, 2).standard_error() == pytest.approx(wanted)
    assert Precisions(1, *(BoxRows.of([0], [[0, 0, 9, 9]], [0]) for _ in range(2)), 1).standard_error() is None


def test_constant_boxes_are_the_true_ones_that_fit_most_images() -> None:
    corners = [[0, 0, 10, 10], [0, 0, 10, 11], [1, 0, 10, 10], [40, 40, 50, 50], [0, 0, 99, 99]]
    truth = BoxRows.of([0, 1, 2, 3, 0], corners, [1, 1, 1, 1, 0])
    found = constant_boxes(5, truth)
    assert found.image.tolist() == [0, 1, 2, 3, 4] * 2
    assert found.classes.tolist() == [0] * 5 + [1] * 5
    assert (found.corners[:5] == corners[4]).all()
    assert (found.corners[5:] == corners[0]).all()
