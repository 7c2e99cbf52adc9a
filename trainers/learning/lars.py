"""LARS: SGD with momentum and a learning rate for each layer, by the ratio of the norms of its weights and its gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

TRUST = 0.001
"""Trust coefficient of You et al. 2017, the value of all view methods."""


class Lars(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017); weight decay is added to the gradient before it is scaled.

    Args:
        params: groups of weights, each with `weight_decay`, and with `adapts`, whether its layers' learning rates are scaled.
        lr: the learning rate.
        momentum: momentum of the scaled gradient.
    """

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, momentum: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "adapts": True})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the weights that have a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                update = weight.grad.add(weight, alpha=group["weight_decay"])
                if group["adapts"]:
                    update = update * _trust(weight, update)
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].mul_(group["momentum"]).add_(update)
                weight.add_(state["momentum"], alpha=-group["lr"])


def _trust(weight: Tensor, update: Tensor) -> Tensor:
    """Factor of a layer's learning rate; 1 if its weights or its update are 0."""
    size, change = torch.linalg.vector_norm(weight), torch.linalg.vector_norm(update)
    return torch.where((size > 0) & (change > 0), TRUST * size / change.clamp(min=1e-12), 1.0)
