"""Mean IoU is that of a plain count over all pixels, whatever the batches; its standard error is the jackknife's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from trainers.downstream.overlap import Overlaps


def plain_ious(truth: np.ndarray, named: np.ndarray, classes: int) -> list[float]:
    """The IoU of each class that occurs, from sets of pixels."""
    found = []
    for label in range(classes):
        true, said = (truth == label), (named == label) & (truth < classes)
        if true.any():
            found.append((true & said).sum() / (true | said).sum())
    return found


@given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_it_is_that_of_a_plain_count_in_any_batches_and_order(n: int, classes: int, seed: int) -> None:
    random = np.random.Generator(np.random.Philox(seed))
    ids = random.permutation(n).astype(np.uint64)
    truth, named = random.integers(0, classes, (n, 4, 5)), random.integers(0, classes, (n, 4, 5))
    truth[random.uniform(size=truth.shape) < 0.2] = 255
    truth[0, 0, 0] = 0
    whole = Overlaps.of(ids, truth, named, classes)
    parts = sum(
        (Overlaps.of(ids[i : i + 1], truth[i : i + 1], named[i : i + 1], classes) for i in range(n)), Overlaps.none(classes)
    )
    assert whole.mean() == pytest.approx(np.mean(plain_ious(truth, named, classes)))
    assert (parts.mean(), parts.trivial()) == (whole.mean(), whole.trivial())
    assert (parts.confusion == whole.confusion).all()
    assert whole.confusion.sum() == (truth < 255).sum()
    counted = truth[truth < 255]
    most = np.bincount(counted).argmax()
    assert whole.trivial() == pytest.approx(np.mean(plain_ious(truth, np.full_like(truth, most), classes)))
    assert whole.accuracy() == pytest.approx((named == truth)[truth < 255].mean())


def test_the_standard_error_is_the_jackknifes_over_images() -> None:
    random = np.random.Generator(np.random.Philox(1))
    truth = random.integers(0, 3, (7, 6, 6))
    named = np.where(random.uniform(size=truth.shape) < 0.6, truth, random.integers(0, 3, truth.shape))
    left_out = [np.mean(plain_ious(np.delete(truth, i, 0), np.delete(named, i, 0), 3)) for i in range(7)]
    wanted = math.sqrt(6 / 7 * np.square(np.array(left_out) - np.mean(left_out)).sum())
    overlaps = Overlaps.of(np.arange(7, dtype=np.uint64), truth, named, 3)
    assert overlaps.standard_error() == pytest.approx(wanted)
    assert Overlaps.of(np.zeros(1, np.uint64), truth[:1], named[:1], 3).standard_error() is None


def test_a_class_that_no_pixel_is_of_is_left_out_however_often_it_is_named() -> None:
    truth, named = np.array([[[0, 0, 1, 1]]]), np.array([[[0, 2, 1, 1]]])
    overlaps = Overlaps.of(np.zeros(1, np.uint64), truth, named, 4)
    assert np.isnan(overlaps.ious()).tolist() == [False, False, True, True]
    assert overlaps.mean() == pytest.approx((0.5 + 1) / 2)


def test_masks_in_which_nothing_counts_are_refused_in_words() -> None:
    with pytest.raises(UserError, match="no pixel of its masks counts"):
        Overlaps.of(np.zeros(1, np.uint64), np.full((1, 2, 2), 255), np.zeros((1, 2, 2), int), 2).mean()
