"""Balanced labels: as by the plain formula, and all classes alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from trainers.labelling.sinkhorn import SHARPNESS, TOLERANCE, balance, evenness, plan


@pytest.fixture
def answers() -> torch.Tensor:
    """Log probabilities of 600 images and 7 classes, of which the first is the most probable of nearly all."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(600, 7)) * 0.5
    logits[:, 0] += 2
    return F.log_softmax(torch.from_numpy(logits.astype(np.float32)), 1)


def test_all_classes_are_given_as_much(answers: torch.Tensor) -> None:
    offsets, errors = balance(lambda: [answers], 7)
    assert np.bincount(answers.argmax(1).numpy(), minlength=7).max() > 500
    assert errors[0] > 1 > TOLERANCE > errors[-1]
    share = plan(answers, torch.from_numpy(offsets)).sum(0) / 600
    assert float((7 * share - 1).abs().sum()) < TOLERANCE
    sizes = np.bincount(plan(answers, torch.from_numpy(offsets)).argmax(1).numpy(), minlength=7)
    assert evenness(sizes.tolist()) > 6.9


def test_the_plan_is_that_of_sinkhorn_and_knopp(answers: torch.Tensor) -> None:
    """Rows and columns of p ** lambda are scaled in turn, as in equation 8 of Asano et al. 2020."""
    offsets, errors = balance(lambda: [answers], 7)
    p = np.exp(SHARPNESS * answers.double().numpy())
    beta = np.ones(7)
    for _ in range(len(errors) - 1):
        alpha = 1 / (600 * (p @ beta))
        beta /= 7 * (beta * (p.T @ alpha))
    alpha = 1 / (600 * (p @ beta))
    wanted = alpha[:, None] * p * beta
    np.testing.assert_allclose(plan(answers, torch.from_numpy(offsets)).numpy() / 600, wanted, atol=1e-8)


def test_neither_blocks_nor_order_change_a_bit(answers: torch.Tensor) -> None:
    whole, _ = balance(lambda: [answers], 7)
    turned = answers[torch.randperm(600, generator=torch.Generator().manual_seed(1))]
    parts, _ = balance(lambda: turned.split(128), 7)
    np.testing.assert_array_equal(whole, parts)


def test_a_class_that_nothing_speaks_for_is_filled_as_well() -> None:
    logits = torch.randn(400, 4, generator=torch.Generator().manual_seed(2)) * 0.1
    logits[:, 3] -= 30
    offsets, errors = balance(lambda: [F.log_softmax(logits, 1)], 4)
    assert errors[-1] < TOLERANCE
    sizes = np.bincount(plan(F.log_softmax(logits, 1), torch.from_numpy(offsets)).argmax(1).numpy(), minlength=4)
    assert sizes.min() > 50


def test_the_effective_number_of_classes() -> None:
    assert evenness([10, 10, 10, 0]) == pytest.approx(3)
    assert evenness([30, 0]) == pytest.approx(1)
