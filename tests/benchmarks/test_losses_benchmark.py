"""The losses of view objectives are lightly's, in value and gradient, up to the constants of their definitions."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("lightly", reason='lightly is not installed: pip install ".[bench]"')

from benchmarks import losses


@pytest.mark.parametrize("name", losses.CASES)
def test_a_loss_and_its_gradient_are_those_of_lightly(name: str) -> None:
    ours, theirs, loss, gradient = losses.difference(losses.CASES[name], samples=48, width=32, seed=3)
    assert ours != 0 != theirs
    assert max(loss, gradient) <= losses.TOLERANCE


def test_another_definition_is_seen() -> None:
    case = replace(losses.CASES["simclr: NTXentLoss"], parameters={"temperature": 0.51})
    *_, loss, gradient = losses.difference(case, samples=48, width=32, seed=3)
    assert min(loss, gradient) > 100 * losses.TOLERANCE
