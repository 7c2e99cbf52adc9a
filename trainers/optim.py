"""How weights are updated: optimizer, learning rate over the run, and the precision that the processor computes in."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from pipeline.recipe import schema

Precision = Literal["auto", "float32", "bfloat16"]


def build_optimizer(spec: schema.Optimizer, module: nn.Module, steps: int) -> tuple[Optimizer, LRScheduler]:
    """An optimizer over all weights of `module`, and its schedule: a linear warm-up, then a cosine to zero.

    Biases, norms and other weights of one axis are not decayed: shrinking them regularises nothing (He et al. 2019, "Bag of
    tricks", section 3.1).

    Args:
        spec: the recipe's optimizer section.
        module: on its device already.
        steps: steps of the whole run; call the scheduler's `step()` after each.
    """
    weights = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer: Optimizer
    if spec.name == "sgd":
        optimizer = SGD(groups, lr=spec.lr, momentum=spec.momentum, nesterov=spec.momentum > 0, fused=True)
    else:
        optimizer = AdamW(groups, lr=spec.lr, fused=True)
    warm = min(round(spec.warmup * steps), steps - 1)
    cosine = CosineAnnealingLR(optimizer, max(1, steps - warm))
    if warm < 1:
        return optimizer, cosine
    rise = LinearLR(optimizer, start_factor=1 / (warm + 1), total_iters=warm)
    return optimizer, SequentialLR(optimizer, [rise, cosine], milestones=[warm])


def compute_dtype(device: torch.device | str, precision: Precision) -> torch.dtype:
    """The type of matrix products: bfloat16 where asked for, or where `auto` finds a processor with instructions for it."""
    if precision == "auto":
        device = torch.device(device)
        native = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_has_bfloat16()
        precision = "bfloat16" if native else "float32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def autocast(device: torch.device | str, precision: Precision) -> torch.autocast:
    """A context in which the forward pass runs in `compute_dtype`; weights and losses stay float32."""
    dtype = compute_dtype(device, precision)
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16)


def place(module: nn.Module, device: torch.device | str) -> nn.Module:
    """The module on `device` with channels-last weights, the layout of its inputs, in which convolutions are faster."""
    return module.to(device).to(memory_format=torch.channels_last)


def _cpu_has_bfloat16() -> bool:
    """AMX. Processors with AVX512_BF16 alone gain a quarter, and torch 2.14's convolution there leaves parts of a gradient unset.

    (A 3x3 convolution of a map of one position: the weights that only ever meet padding get whatever lay in memory.)
    """
    if hasattr(torch.cpu, "get_capabilities"):  # public since torch 2.11
        return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    return bool(torch.cpu._is_amx_tile_supported())
