"""The engines: they turn encoded bytes and drawn parameters into pixels."""

from __future__ import annotations

import sys

from pipeline.engines.base import Engine, Request, pixel_shapes, with_views

__all__ = ["Engine", "Request", "gpus_visible", "pixel_shapes", "with_views"]


def gpus_visible() -> int:
    """Number of NVIDIA GPUs that this process may use: those that it sees; in a Ray worker, those that Ray assigned to it.

    Ray no longer hides the GPUs of a machine from workers to which it assigned none (github.com/ray-project/ray/issues/54868).
    """
    import torch

    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
        return min(len(ray.get_gpu_ids()), torch.cuda.device_count())
    return torch.cuda.device_count()
