"""Labelled images of a source without Ray, and tensors that are as far from numpy as those on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from pipeline.batches import batches
from pipeline.units import Source, UnitRenderer
from trainers.downstream.passes import Batch, usable


def images_of(source: Source) -> Iterator[Batch]:
    """The batches of a source on one rank, without Ray."""
    render = UnitRenderer(source, 1)
    made = (render(source.read(number)) for number in range(source.schedule.units(source.step)))
    for _, columns in batches(source.schedule, source.step, 0, 1, made):
        yield usable(columns, torch.device("cpu"))


class OnDevice(torch.Tensor):
    """A tensor that must be copied to the host before numpy may have it, as one on a GPU must."""

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("can't convert a device's tensor to numpy; use Tensor.cpu() first")

    numpy = __array__

    def cpu(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)
