"""The columns into which the DALI engine copies its pixels: on the host, or on the device that rendered them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np


def rows_on(device: Any, rows: np.ndarray) -> Any:
    """Copy row numbers to a device, to index tensors there, without waiting for the device's earlier work."""
    import torch

    numbers = torch.from_numpy(rows)
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers


class HostBuffers:
    """Output columns that are numpy arrays."""

    def make(self, shapes: Mapping[str, tuple[int, ...]], n: int) -> dict[str, Any]:
        """Columns of zeros: uint8, n rows each."""
        return {name: np.zeros((n, *shape), np.uint8) for name, shape in shapes.items()}

    def put(self, columns: Mapping[str, Any], rows: np.ndarray, outputs: Iterable[Any]) -> None:
        """Copy DALI's outputs, in the order of the columns, to some rows of them."""
        for column, output in zip(columns.values(), outputs):
            column[rows] = np.from_dlpack(output.as_cpu().as_tensor())


class DeviceBuffers:
    """Output columns that are tensors on the engine's device; no pixels go through the host.

    Copies run on their own stream and are complete when `put` returns. So they do not wait for the network's steps, and DALI does
    not write into buffers that are still being read (docs.nvidia.com/deeplearning/dali, "DALI and PyTorch").

    Args:
        device_id: the GPU, or None for the CPU.
    """

    def __init__(self, device_id: int | None) -> None:
        import torch

        self._device = torch.device("cpu" if device_id is None else f"cuda:{device_id}")
        self._stream = None if device_id is None else torch.cuda.Stream(self._device)

    def make(self, shapes: Mapping[str, tuple[int, ...]], n: int) -> dict[str, Any]:
        """Columns of zeros: uint8, n rows each."""
        import torch

        with self._on_stream():
            columns = {name: torch.zeros((n, *shape), dtype=torch.uint8, device=self._device) for name, shape in shapes.items()}
        if self._stream is not None:
            for column in columns.values():  # keeps torch from reusing the memory while the network still reads this batch
                column.record_stream(torch.cuda.default_stream(self._device))
            self._stream.synchronize()
        return columns

    def put(self, columns: Mapping[str, Any], rows: np.ndarray, outputs: Iterable[Any]) -> None:
        """Copy DALI's outputs, in the order of the columns, to some rows of them."""
        import torch

        with self._on_stream():
            where = rows_on(self._device, rows)
            for column, output in zip(columns.values(), outputs):
                column[where] = torch.from_dlpack(output.as_tensor())
        if self._stream is not None:
            self._stream.synchronize()

    def _on_stream(self) -> Any:
        import torch

        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
