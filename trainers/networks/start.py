"""Weights from which pretraining starts: read from a file, and put into a backbone."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.storage import exists, read_all, without_secrets
from trainers.networks.backbones import Backbone

_INSIDE = ("backbone", "state_dict", "model")
"""Names under which files keep their weights beside other things: those of this project, and usual ones."""


def start_from(backbone: Backbone, url: str) -> None:
    """Load the weights of `training.backbone.weights`; those that the file lacks keep their initial values.

    Args:
        backbone: the network.
        url: a path or URL.

    Raises:
        UserError: there is no such file, it holds no weights, or those of another network.
    """
    shown = f"training.backbone.weights: {without_secrets(url)}"
    if not exists(url):
        raise UserError(f"{shown}: no such file")
    try:
        state = _read(url)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        words = " ".join(str(error).split())[:160]
        raise UserError(f"{shown}: it holds no tensors that can be read without running its code: {words}") from None
    if not state:
        raise UserError(f"{shown}: it holds no weights")
    try:
        backbone.load(state)
    except UserError as error:
        raise UserError(f"{shown}: {error}") from None


def _read(url: str) -> dict[str, Tensor]:
    if url.partition("?")[0].endswith(".safetensors"):
        try:
            from safetensors.torch import load
        except ImportError:
            raise UserError(
                "training.backbone.weights: safetensors is not installed: pip install 'pseudolabel[export]'"
            ) from None
        return dict(load(read_all(url)))
    return tensors_in(torch.load(io.BytesIO(read_all(url)), map_location="cpu", weights_only=True))


def tensors_in(content: Any) -> dict[str, Tensor]:
    """The weights by name in what `torch.save` wrote, which may lie beside other things; none if there are none."""
    if not isinstance(content, dict):
        return {}
    weights = next((content[name] for name in _INSIDE if isinstance(content.get(name), dict)), content)
    return {name: weight for name, weight in weights.items() if isinstance(weight, Tensor)}
