"""Pixels that stay on DALI's device, the CPU, as if it were a GPU: tensors that numpy must not touch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pipeline.engines.output_buffers import DeviceBuffers

_INDEX = (Tensor.__getitem__, Tensor.__setitem__)
_TO_THE_HOST = (Tensor.to, Tensor.cpu)


class OnDevice(Tensor):
    """A tensor that must be copied to the host before numpy may have it, as one on a GPU must.

    An index of numpy's, which torch would copy to the device while everybody waits, is refused. The network is taken to be there.
    """

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("can't convert a device's tensor to numpy; use Tensor.cpu() first")

    numpy = __array__

    def cpu(self) -> Tensor:
        return self.as_subclass(Tensor)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _INDEX and isinstance(args[1], np.ndarray):
            raise TypeError("an index on the host: the copy to the device would wait for it")
        return super().__torch_function__(func, types, args, kwargs or {})


class OnAnother(OnDevice):
    """The same if the network is on the host: it mixes with no tensor of the host until it is sent there."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _INDEX and any(type(x) is Tensor and x.ndim for x in tree_leaves((args, kwargs))):
            raise RuntimeError(f"expected all tensors on one device: {func}")
        found = super().__torch_function__(func, types, args, kwargs)
        return found.as_subclass(Tensor) if func in _TO_THE_HOST else found


class StayingBuffers(DeviceBuffers):
    """Output buffers whose columns are such tensors."""

    def __init__(self, kind: type[OnDevice] = OnDevice) -> None:
        super().__init__(None)
        self._kind = kind

    def make(self, shapes: Mapping[str, tuple[int, ...]], n: int) -> dict[str, Any]:
        return {name: column.as_subclass(self._kind) for name, column in super().make(shapes, n).items()}
