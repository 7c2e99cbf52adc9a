"""The error of a run that diverges names the step, and the loss or layer in which it began."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from trainers.learning.divergence import Finding, FiniteCheck, diverged
from trainers.objectives import Outcome


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 1))


def outcomes(loss: Tensor) -> dict[str, Outcome]:
    zero = torch.zeros(())
    return {"rotation": Outcome(loss.sum(), zero, zero, zero), "jigsaw": Outcome(torch.ones(()), zero, zero, zero)}


def look(check: FiniteCheck, model: nn.Sequential, step: int, poison: int | None = None, loss: float = 1.0) -> None:
    model.zero_grad()
    found = model(torch.ones(4, 2)).mean(1) * loss
    found.sum().backward()
    if poison is not None:
        model[poison].weight.grad[0, 0] = torch.nan
    check.look(step, outcomes(found))


def test_nothing_is_found_while_all_is_finite() -> None:
    model = network()
    check = FiniteCheck(model, ("rotation", "jigsaw"), torch.device("cpu"))
    assert check.found() is None
    look(check, model, 0)
    assert check.found() is None


def test_the_first_step_and_the_layer_nearest_the_loss_are_named() -> None:
    model = network()
    check = FiniteCheck(model, ("rotation", "jigsaw"), torch.device("cpu"))
    look(check, model, 6)
    look(check, model, 7, poison=1)
    look(check, model, 8, poison=2)  # later ones follow from the first
    assert check.found() == Finding(7, False, "the losses are finite, and the gradient of 1.weight is not")


def test_a_loss_is_named_before_the_gradients_that_follow_from_it() -> None:
    model = network()
    check = FiniteCheck(model, ("rotation", "jigsaw"), torch.device("cpu"))
    look(check, model, 3, loss=float("inf"))
    assert check.found() == Finding(3, True, "the loss of rotation is not finite")


def test_a_metric_that_is_not_finite_is_found_too() -> None:
    model = network()
    check = FiniteCheck(model, ("rotation", "jigsaw"), torch.device("cpu"))
    found = outcomes(torch.ones(4))
    found["jigsaw"] = replace(found["jigsaw"], metric=torch.tensor(torch.nan))
    check.look(2, found)
    assert check.found() == Finding(2, True, "the metric of jigsaw is not finite")


@pytest.mark.parametrize(
    ("is_loss", "precision", "advice"),
    [
        (True, "float32", "lower training.optimizer.lr (it was 0.1) or lengthen training.optimizer.warmup"),
        (True, "bfloat16", "lower training.optimizer.lr (it was 0.1), or try training.precision: float32"),
        (False, "float32", "lower training.optimizer.lr (it was 0.1) or lengthen training.optimizer.warmup"),
        (
            False,
            "bfloat16",
            "set training.precision: float32; if that trains, this processor computes the layer wrongly in bfloat16",
        ),
    ],
)
def test_the_advice_fits_the_cause(is_loss: bool, precision: str, advice: str) -> None:
    assert str(diverged(Finding(3, is_loss, "it is not finite"), precision, 0.1)) == f"at step 3 it is not finite: {advice}"
