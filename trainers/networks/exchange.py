"""Exchanges rows between ranks inside a forward pass, with their gradients; ranks may have different numbers of rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together; 1 without distributed training."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """Gathers tensors of one shape from all ranks; the gradient of a rank's tensor is the sum over the losses of all ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank()]


def gather_ranks(x: Tensor) -> Tensor:
    """Gather `x`, of the same shape on each rank, from all ranks, (ranks, *shape), in order of rank. Differentiable."""
    gathered: Tensor = _Gather.apply(x) if world_size() > 1 else x.unsqueeze(0)
    return gathered


class Rows:
    """The rows of a batch that this rank has, among those of all ranks.

    Every rank must create one at the same point of its step, and take part in each `gather` and `sum`, however few rows it has.
    With DDP, which averages gradients over ranks, sum the loss over a rank's own rows and divide it by (batch / ranks): its
    gradient is then exactly that of one process that has the whole batch.

    Args:
        n: number of rows of this rank.
        device: device of the tensors.
        alone: whether to ignore the other ranks and exchange nothing.

    Attributes:
        start: place of this rank's first row among the rows of all ranks.
        total: number of rows of all ranks.
    """

    def __init__(self, n: int, device: torch.device, alone: bool = False) -> None:
        self._counts = [n]
        self.start = 0
        if not alone and world_size() > 1:
            parts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size())]
            dist.all_gather(parts, torch.tensor([n], device=device))
            self._counts = torch.cat(parts).tolist()
            self.start = sum(self._counts[: dist.get_rank()])
        self.total = sum(self._counts)

    def gather(self, x: Tensor) -> Tensor:
        """Gather the rows of all ranks, (total, ...), in order of rank; `x` holds this rank's, (n, ...). Differentiable."""
        if len(self._counts) == 1:
            return x
        most = max(self._counts)
        padded = torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])])
        return torch.cat([part[:n] for part, n in zip(gather_ranks(padded), self._counts)])

    def sum(self, x: Tensor) -> Tensor:
        """The sum of a tensor of one shape over all ranks, without a gradient."""
        total = x.detach().clone()
        if len(self._counts) > 1:
            dist.all_reduce(total)
        return total

    def own(self, x: Tensor) -> Tensor:
        """Take this rank's rows from what `gather` returned."""
        return x[self.start : self.start + self._counts[0 if len(self._counts) == 1 else dist.get_rank()]]
