"""Builds the optimizer and the schedule of its learning rate over the run."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from pipeline.recipe import training
from trainers.learning.lars import Lars
from trainers.objectives.base import Objective
from trainers.objectives.views import cosine

BATCH = 256
"""Batch size for which a scaled learning rate (`training.optimizer.scale`) is given."""


def build_optimizer(spec: training.Optimizer, module: nn.Module, steps: int, batch: int = BATCH) -> tuple[Optimizer, LRScheduler]:
    """Build an optimizer over all weights of `module`, and its schedule: a linear warm-up, then a cosine to zero.

    Biases, norms and other weights of one axis have no weight decay: it would regularise nothing (He et al. 2019, "Bag of
    tricks", section 3.1). After these two groups come those that objectives have for themselves (`Objective.own_group`).

    Args:
        spec: the recipe's optimizer section.
        module: the network, which must be on its device already.
        steps: number of steps of the whole run; call the scheduler's `step()` after each.
        batch: samples of a step on all ranks, by which `scale` scales the learning rate.
    """
    weights, own = shared_weights(module), own_groups(module)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
        *own,
    ]
    lr = _peak(spec, batch)
    optimizer: Optimizer
    if spec.name == "sgd":
        optimizer = SGD(groups, lr=lr, momentum=spec.momentum, nesterov=spec.momentum > 0, fused=True)
        # Fused, it refuses a weight whose first gradient comes after others'.
        for group in (group for group in optimizer.param_groups if group["momentum"]):
            for weight in group["params"]:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    elif spec.name == "lars":
        groups[1]["adapts"] = False
        optimizer = Lars(groups, lr=lr, momentum=spec.momentum)
    else:
        optimizer = AdamW(groups, lr=lr, fused=True)
    warm = _warm(spec, steps)
    fall = CosineAnnealingLR(optimizer, max(1, steps - warm))
    if warm < 1:
        return optimizer, fall
    rise = LinearLR(optimizer, start_factor=1 / (warm + 1), total_iters=warm)
    return optimizer, SequentialLR(optimizer, [rise, fall], milestones=[warm])


def own_groups(module: nn.Module) -> list[dict[str, Any]]:
    """The parameter groups that the objectives in a module have for themselves."""
    found = [part.own_group() for part in module.modules() if isinstance(part, Objective)]
    return [group for group in found if group is not None]


def shared_weights(module: nn.Module) -> list[nn.Parameter]:
    """The weights of a module that are trained and in no objective's own group."""
    apart = {id(weight) for group in own_groups(module) for weight in group["params"]}
    return [weight for weight in module.parameters() if weight.requires_grad and id(weight) not in apart]


def learning_rate(spec: training.Optimizer, step: int, steps: int, batch: int = BATCH) -> float:
    """The learning rate of a step, from 0, that the schedule of `build_optimizer` comes to; arguments as there."""
    peak, warm = _peak(spec, batch), _warm(spec, steps)
    return peak * (step + 1) / (warm + 1) if step < warm else cosine(peak, 0.0, step - warm, max(1, steps - warm))


def _peak(spec: training.Optimizer, batch: int) -> float:
    return spec.lr * {"none": 1.0, "linear": batch / BATCH, "sqrt": math.sqrt(batch / BATCH)}[spec.scale]


def _warm(spec: training.Optimizer, steps: int) -> int:
    """Steps in which the learning rate rises."""
    return min(round(spec.warmup * steps), steps - 1)


def set_weight_decay(optimizer: Optimizer, spec: training.Optimizer, step: int, steps: int) -> None:
    """Set the weight decay of a step, from 0: where it has another value at the end, it follows half a cosine.

    Args:
        optimizer: what `build_optimizer` returned.
        spec: the recipe's optimizer section.
        step: the step.
        steps: number of steps of the whole run.
    """
    if spec.weight_decay is not None and spec.weight_decay_end is not None:
        optimizer.param_groups[0]["weight_decay"] = cosine(spec.weight_decay, spec.weight_decay_end, step, steps)


def place(module: nn.Module, device: torch.device | str) -> nn.Module:
    """Move a module to `device`, with channels-last weights: the layout of its inputs, in which convolutions are faster."""
    return module.to(device).to(memory_format=torch.channels_last)
