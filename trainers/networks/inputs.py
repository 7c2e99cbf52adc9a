"""Turns a batch's columns into a network's inputs: tensors on the device, normalised channels-last floats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.engines.output_buffers import rows_on

Norm = Literal["image", "patch"]

LEAST_STD = 1 / 255
"""One level, which is added to a patch's standard deviation, so that flat patches stay near zero."""


def to_device(batch: Mapping[str, Any], device: torch.device | str) -> dict[str, Tensor]:
    """Copy a batch's columns of numbers (numpy arrays or tensors) to `device`, in their dtype; columns of text are left out.

    Read-only arrays, as Ray hands them out, are copied: torch has no read-only tensors.
    """
    device = torch.device(device)
    tensors = {}
    for name, column in batch.items():
        if not isinstance(column, Tensor):
            column = np.asarray(column)
            if column.dtype.kind not in "biuf":
                continue
            column = torch.from_numpy(column if column.flags.writeable else column.copy())
        if device.type == "cuda" and column.device.type == "cpu":
            column = column.pin_memory()  # only from pinned memory is the transfer asynchronous
        tensors[name] = column.to(device, non_blocking=True)
    return tensors


def network_input(x: Tensor, mean: Tensor, std: Tensor, norm: Norm = "image") -> Tensor:
    """Normalise pixels for a network.

    Args:
        x: uint8 (n, h, w, c), or (n, k, h, w, c) for k patches of each sample; c is 3, or 1 for grey.
        mean: channel means of the corpus, in 0..1, float (3,).
        std: channel standard deviations of the corpus, in the same units.
        norm: `image` standardises by `mean` and `std`; `patch` standardises each image or patch by its own mean and deviation in
            each channel, so that its brightness and colour do not reveal its place (Noroozi & Favaro 2016, section 4.2).

    Returns:
        Float32 (n, 3, h, w), or (n * k, 3, h, w) with a sample's patches one after the other; a grey channel is repeated. The
        memory is channels-last.

    Raises:
        ValueError: `x` has a wrong number of axes or channels.
    """
    if x.ndim not in (4, 5) or x.shape[-1] not in (1, 3):
        raise ValueError(f"pixels of shape {tuple(x.shape)}: expected (n, h, w, c) or (n, k, h, w, c) with c 1 or 3")
    if x.ndim == 5:
        x = x.flatten(0, 1)
    y = x.permute(0, 3, 1, 2).to(torch.float32, copy=True).div_(255)  # in place: one batch of floats is in memory, not four
    if norm == "patch":
        deviation, centre = torch.std_mean(y, dim=(2, 3), correction=0, keepdim=True)
        y = ((y - centre) / (deviation + LEAST_STD)).expand(-1, 3, -1, -1)
    else:
        y = (y.sub_ if y.shape[1] == 3 else y.sub)(mean.view(3, 1, 1)).div_(std.view(3, 1, 1))
    return y.contiguous(memory_format=torch.channels_last)


class Normaliser(nn.Module):
    """Normalises by `network_input` with the corpus's statistics, which move with the module and are not part of its weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor, norm: Norm = "image") -> Tensor:
        """Normalise uint8 pixels to float32 (n, 3, h, w); see `network_input`."""
        return network_input(x, self.mean, self.std, norm)


def decodable(columns: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave out the samples of weight 0, whose black pixels would affect the others through batch normalisation.

    If fewer than two samples would be left, the batch is returned whole, because normalisation over one sample is undefined; the
    weights still keep the bad samples out of loss and metric.

    Args:
        columns: numpy arrays or tensors; `weight` must be on the host, so that no step waits for a device.
    """
    kept = np.flatnonzero(columns["weight"])
    if len(kept) == len(columns["weight"]) or len(kept) < 2:
        return columns
    return {
        name: column[rows_on(column.device, kept) if isinstance(column, Tensor) else kept] for name, column in columns.items()
    }


def of_task(batch: Mapping[str, Tensor], name: str, number: int) -> dict[str, Tensor]:
    """Take the samples of a batch whose column `task` has this number, without the columns of other tasks.

    If there are fewer than two, other samples with weight 0 make them two, because batch normalisation needs two and distributed
    training needs a gradient for every weight.
    """
    is_own = batch["task"] == number
    rows = is_own.nonzero().flatten()
    too_few = len(rows) < 2
    if too_few:
        rows = torch.cat([rows, (~is_own).nonzero().flatten()[: 2 - len(rows)]])
    own = [column for column in batch if "." not in column or column.startswith(f"{name}.")]
    mine = {column: signed(batch[column])[rows] for column in own}
    if too_few:
        mine["weight"] = mine["weight"] * is_own[rows]
    return mine


def signed(column: Tensor) -> Tensor:
    """View a uint64 column as int64, since torch cannot index uint64; other columns are returned unchanged."""
    return column.view(torch.int64) if column.dtype is torch.uint64 else column
