"""Finds the first loss, metric or gradient that is not finite: at which step, and in which layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.errors import RunError
from trainers.objectives import Outcome


class Diverged(RunError):
    """The loss or a gradient is not finite; a restart from the same checkpoint would end the same way."""


class Finding(NamedTuple):
    """The first step with a value that is not finite; whether that is a loss or metric, not only a gradient; and which, in
    words."""

    step: int
    is_loss: bool
    what: str


class FiniteCheck:
    """Records, on the device, the first step whose losses, metrics or gradients are not all finite; no step waits for the device.

    Args:
        model: its gradients are checked.
        objectives: names of the losses.
        device: of the model.
    """

    def __init__(self, model: nn.Module, objectives: Iterable[str], device: torch.device) -> None:
        self._model, self._losses = model, list(objectives)
        self._step = torch.tensor(-1, device=device)
        self._finite: Tensor | None = None

    def look(self, step: int, outcomes: Mapping[str, Outcome]) -> None:
        """Check a step's losses, metrics and gradients; to be called before the optimizer's step."""
        losses = [outcomes[name].loss.detach() for name in self._losses]
        metrics = [outcomes[name].metric for name in self._losses]
        norms = [torch.linalg.vector_norm(gradient) for _, gradient in self._gradients()]
        finite = torch.stack([value.float() for value in (*losses, *metrics, *norms)]).isfinite()
        if self._finite is None:
            self._finite = torch.ones_like(finite)
        first = (self._step < 0) & ~finite.all()
        self._step = torch.where(first, step, self._step)
        self._finite = torch.where(first, finite, self._finite)

    def found(self) -> Finding | None:
        """The first value that was not finite; None if all were finite. Waits for the device."""
        step = int(self._step)
        if step < 0 or self._finite is None:
            return None
        finite_ones, n = self._finite.tolist(), len(self._losses)
        for what, flags in (("loss", finite_ones[:n]), ("metric", finite_ones[n : 2 * n])):
            if bad := [name for name, finite in zip(self._losses, flags) if not finite]:
                return Finding(step, True, f"the {what} of {' and '.join(bad)} is not finite")
        # Gradients are computed from the last layer to the first, so the last one in order is where it began.
        layers = [name for (name, _), finite in zip(self._gradients(), finite_ones[2 * n :]) if not finite]
        return Finding(step, False, f"the losses are finite, and the gradient of {layers[-1]} is not")

    def _gradients(self) -> list[tuple[str, Tensor]]:
        return [(name, weight.grad) for name, weight in self._model.named_parameters() if weight.grad is not None]


def diverged(found: Finding, precision: str, lr: float) -> Diverged:
    """Make the error of a run that diverged.

    Args:
        found: what was not finite, and at which step.
        precision: `float32` or `bfloat16`, in which matrix products were computed.
        lr: the learning rate at the time.
    """
    if precision == "float32":
        advice = f"lower training.optimizer.lr (it was {lr:.2g}) or lengthen training.optimizer.warmup"
    elif found.is_loss:
        advice = f"lower training.optimizer.lr (it was {lr:.2g}), or try training.precision: float32"
    else:
        advice = "set training.precision: float32; if that trains, this processor computes the layer wrongly in bfloat16"
    return Diverged(f"at step {found.step} {found.what}: {advice}")
