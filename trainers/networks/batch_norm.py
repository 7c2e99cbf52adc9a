"""Batch normalisation by the statistics of the batch of all ranks, on CPUs and on GPUs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainers.networks.exchange import gather_ranks, world_size


class GlobalBatchNorm(_BatchNorm):
    """Batch normalisation whose mean and variance are those of the rows of all ranks together.

    Torch's own `SyncBatchNorm` does the same, but not on CPUs. The counts, means and variances of the ranks are combined by the
    method of Chan et al. 1979; a rank may have any number of rows. In evaluation it is torch's batch normalisation.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim < 2:
            raise ValueError(f"expected at least two axes, got {x.ndim}")

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, as `torch.nn.BatchNorm2d` does; every rank must call it at the same point of its step."""
        if not self.training or x.is_meta or world_size() == 1:
            return super().forward(x)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        n = x.numel() // x.shape[1]
        with torch.autocast(x.device.type, enabled=False):
            variance, mean = torch.var_mean(x.float(), axes, correction=0) if n else 2 * [x.float().sum(axes)]
            own = torch.cat([mean.new_full((1,), n), mean, variance])
            counts, means, variances = gather_ranks(own).split([1, len(mean), len(mean)], 1)
            shares = counts / counts.sum()
            mean = (shares * means).sum(0)
            variance = (shares * (variances + (means - mean).square())).sum(0)
            self._follow(mean.detach(), variance.detach(), counts.sum())
            scale = (variance + self.eps).rsqrt() * (1.0 if self.weight is None else self.weight)
            shift = (0.0 if self.bias is None else self.bias) - mean * scale
            shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
            return torch.addcmul(shift.view(shape), x.float(), scale.view(shape)).to(x.dtype)

    def _follow(self, mean: Tensor, variance: Tensor, n: Tensor) -> None:
        """Update the running statistics; the variance is unbiased, as in torch."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        rate = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance * n / (n - 1).clamp(min=1), rate)


def with_global_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every batch normalisation in a module by a `GlobalBatchNorm` with the same weights and name; returns the module."""
    for name, child in module.named_children():
        setattr(module, name, with_global_batch_norm(child))
    if not isinstance(module, _BatchNorm) or isinstance(module, GlobalBatchNorm):
        return module
    layer = GlobalBatchNorm(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
    layer.weight, layer.bias = module.weight, module.bias
    layer.running_mean, layer.running_var = module.running_mean, module.running_var
    layer.num_batches_tracked = module.num_batches_tracked
    return layer.train(module.training)
