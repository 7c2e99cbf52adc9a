"""Weights from which pretraining starts: read from a file, and put into a backbone."""

from __future__ import annotations

from typing import Any

from pipeline.errors import UserError
from pipeline.storage import exists, read_all, without_secrets
from trainers.networks.backbones import Backbone
from trainers.networks.weight_files import weights_of


def start_from(backbone: Backbone, url: str) -> dict[str, Any]:
    """Load the weights of `training.backbone.weights`; those that the file lacks keep their initial values.

    Args:
        backbone: the network.
        url: a path or URL.

    Returns:
        All that the file holds; see `trainers.learning.pretext.HEADS`.

    Raises:
        UserError: there is no such file, it holds no weights, or those of another network.
    """
    shown = f"training.backbone.weights: {without_secrets(url)}"
    if not exists(url):
        raise UserError(f"{shown}: no such file")
    state, saved = weights_of(read_all(url), url, shown)
    try:
        backbone.load(state)
    except UserError as error:
        raise UserError(f"{shown}: {error}") from None
    return saved
