"""Pixels that stay on DALI's device, the CPU, as if it were a GPU: tensors that numpy must not touch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pipeline.engines.output_buffers import DeviceBuffers


class OnDevice(torch.Tensor):
    """A tensor that must be copied to the host before numpy may have it, as one on a GPU must."""

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("can't convert a device's tensor to numpy; use Tensor.cpu() first")

    numpy = __array__

    def cpu(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


class StayingBuffers(DeviceBuffers):
    """A room whose columns are such tensors."""

    def make(self, shapes: Mapping[str, tuple[int, ...]], n: int) -> dict[str, Any]:
        return {name: column.as_subclass(OnDevice) for name, column in super().make(shapes, n).items()}
