"""Exchanges between ranks other than those of gradients."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def summed(values: torch.Tensor, world: int) -> torch.Tensor:
    """The sum of `values` over all ranks, on the host."""
    if world > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values.cpu()


def gathered(items: list[T], world: int) -> list[T]:
    """The items of all ranks, in order of rank."""
    if world == 1:
        return items
    parts: list[list[T] | None] = [None] * world
    dist.all_gather_object(parts, items)
    return [item for part in parts if part for item in part]
