"""The update of weights by their gradients: schedules, the state of objectives, clipping and the optimizer, in order."""

from __future__ import annotations

from typing import Any

from torch import nn

from pipeline.recipe import training
from trainers.learning.optim import build_optimizer, own_groups, set_weight_decay, shared_weights
from trainers.objectives.base import Objective


class Update:
    """What is done before and after the gradients of each step are computed, in a run and in any other loop.

    Args:
        model: the network with its objectives, if it has any.
        spec: the recipe's optimizer section.
        steps: number of steps of the whole run.
        batch: global batch, in samples.

    Attributes:
        optimizer: torch's optimizer.
        scheduler: of its learning rate.
    """

    def __init__(self, model: nn.Module, spec: training.Optimizer, steps: int, batch: int) -> None:
        self.optimizer, self.scheduler = build_optimizer(spec, model, steps, batch)
        self._spec, self._steps = spec, steps
        # Clipped apart: else the gradient of an adversary would change how far the network moves.
        self._clipped = [shared_weights(model), *(group["params"] for group in own_groups(model))]
        self._objectives = [module for module in model.modules() if isinstance(module, Objective)]
        self._backbone: Any = model.backbone if self._objectives else None

    def begin(self, step: int) -> None:
        """Prepare a step, counted from 0: no gradients are left, and what depends on the step is set."""
        set_weight_decay(self.optimizer, self._spec, step, self._steps)
        self.optimizer.zero_grad(set_to_none=True)
        for objective in self._objectives:
            objective.begin_step(step, self._steps)

    def finish(self) -> None:
        """Change the weights by their gradients."""
        for objective in self._objectives:
            objective.before_update()
        if (most := self._spec.clip) is not None:
            for weights in self._clipped:
                nn.utils.clip_grad_norm_(weights, most)
        self.optimizer.step()
        self.scheduler.step()
        for objective in self._objectives:
            objective.after_update(self._backbone)
