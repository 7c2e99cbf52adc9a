"""Reads files of weights, of torch and of safetensors, without running code from them."""

from __future__ import annotations

import io
import pickle
import warnings
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError, installing

_INSIDE = ("backbone", "classifier", "state_dict", "model")
"""Names under which files keep their weights beside other things: those of this project, and usual ones."""


def weights_of(content: bytes, url: str, shown: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights in a file.

    Args:
        content: its bytes.
        url: where it lies; under a name that ends in `.safetensors` it is in that format, else `torch.save` has written it.
        shown: how messages name it.

    Returns:
        Its tensors by name; and all that it holds, where that is a mapping.

    Raises:
        UserError: it holds no weights or other objects than tensors, is damaged, or holds numbers that are not finite.
    """
    saved = _of_safetensors(content, shown) if url.partition("?")[0].endswith(".safetensors") else _of_torch(content, shown)
    found = _tensors_in(saved)
    if not found:
        raise UserError(f"{shown} holds no weights: neither a backbone of `pseudolabel pretrain`, nor a state_dict")
    for name, weight in found.items():
        if weight.is_floating_point() and not weight.isfinite().all():
            raise UserError(f"{shown}: the weight {name} holds numbers that are not finite: the run that left it had diverged")
    return found, saved


def _tensors_in(content: Any) -> dict[str, Tensor]:
    """The weights by name in what `torch.save` wrote, which may lie beside other things; none if there are none."""
    if not isinstance(content, dict):
        return {}
    weights = next((content[name] for name in _INSIDE if isinstance(content.get(name), dict)), content)
    return {name: weight for name, weight in weights.items() if isinstance(weight, Tensor)}


def _of_torch(content: bytes, shown: str) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on old formats; what matters is an error
            saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  torch raises errors of many kinds for what it did not write
        if isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error):
            words = "holds other Python objects than tensors; it is refused, as loading it could run code"
        else:
            words = "is no file of weights by torch.save, or is incomplete or damaged"
        raise UserError(f"{shown} {words}") from None
    return saved if isinstance(saved, dict) else {}


def _of_safetensors(content: bytes, shown: str) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError:
        raise UserError(f"{shown}: safetensors is not installed: {installing('export')}") from None
    try:
        return dict(load(content))
    except (SafetensorError, ValueError, RuntimeError):
        raise UserError(f"{shown} is no file of safetensors, or is incomplete or damaged") from None
