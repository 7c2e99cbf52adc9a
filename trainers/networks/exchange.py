"""What ranks exchange inside a forward pass: rows, of which each rank may have another number, with their gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """How many processes train together; 1 where this one is alone."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """Tensors of one shape from all ranks; the gradient of each rank's own is the sum of what all ranks' losses make of it."""

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
    """The tensors of all ranks, in order of rank, (ranks, *shape); `x` has the same shape on each."""
    gathered: Tensor = _Gather.apply(x) if world_size() > 1 else x.unsqueeze(0)
    return gathered


class Rows:
    """The rows that this rank has of a batch, among those of all ranks.

    Every rank must make one at the same point of its step, and take part in each `gather` and `sum`, however few rows it has.
    With DDP's mean over ranks, a loss that is summed over a rank's own rows and divided by the batch over the number of ranks
    has exactly the gradient of one process that holds the whole batch.

    Args:
        n: how many rows this rank has.
        device: of the tensors.
        alone: whether this rank is looked at by itself, whatever the others do.

    Attributes:
        start: place of this rank's first row among all.
        total: number of all rows.
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
        """The rows of all ranks, (total, ...), in order of rank; `x` holds this rank's, (n, ...). Differentiable."""
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
        """This rank's rows of what `gather` gave."""
        return x[self.start : self.start + self._counts[0 if len(self._counts) == 1 else dist.get_rank()]]
