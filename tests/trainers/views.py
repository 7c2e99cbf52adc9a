"""Batches of views and small objectives that learn from them, made without the data plane."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.objectives.views import Shared

SMALL: dict[str, dict[str, Any]] = {
    "simclr": {"hidden": 32, "width": 16},
    "moco": {"hidden": 32, "width": 16, "queue": 30, "momentum": 0.9},
    "moco v3": {"name": "moco", "version": 3, "hidden": 32, "width": 16},
    "byol": {"hidden": 32, "width": 16, "predictor": 32},
    "simsiam": {"width": 32, "predictor": 16},
    "barlow_twins": {"width": 16},
    "vicreg": {"width": 16},
    "swav": {"hidden": 32, "width": 16, "prototypes": 12, "queue": 30, "queue_from": 0.0},
    "dino": {"hidden": 32, "width": 16, "outputs": 24, "momentum": 0.9},
    "dim": {"hidden": 32, "width": 16},
    "dim jsd": {"name": "dim", "estimator": "jsd", "hidden": 32, "width": 16},
    "amdim": {"hidden": 32, "width": 16},
}
"""Every view objective, with narrow heads."""

N = 8
"""Samples of a batch of views."""


def view_task(case: str, small: bool = False) -> tuple[str, dict[str, Any]]:
    """A task of the recipe that is learnt by a case of `SMALL`, with two small views where asked for."""
    small_views = {"small_views": 2, "small_size": 16} if small else {}
    return "simclr", {"objective": {"name": case.split()[0], **SMALL[case]}, **small_views}


def view_columns(crops: Any, n: int, small: bool = False) -> dict[str, np.ndarray]:
    """A batch of views, cut here and there from photos; its ids are in no order."""
    photos, rng = crops(n, 40), np.random.default_rng(n)

    def cut(side: int, step: int = 1) -> np.ndarray:
        corners = rng.integers(0, 40 - side + 1, (n, 2))
        return np.stack([photo[t : t + side : step, l : l + side : step] for photo, (t, l) in zip(photos, corners)])  # noqa: E741

    columns = {
        "id": rng.permutation(n).astype(np.uint64) + np.uint64(2**63),
        "weight": np.ones(n, np.float32),
        "simclr.input": np.stack([cut(32), cut(32)], 1),
    }
    return {**columns, "simclr.small": np.stack([cut(32, 2), cut(32, 2)], 1)} if small else columns


def plain(values: Tensor) -> np.ndarray:
    return values.detach().double().numpy()


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def compare(objective, batch, x: Tensor):
    return objective.compare(x, Shared.of(batch, alone=True))


def heads(objective, x: Tensor, *names: str) -> np.ndarray:
    """What copies of heads make of the views, each a batch of its own or all one batch, so that running statistics stay."""
    n, v = x.shape[:2]
    for name in names:
        head = copy.deepcopy(objective.get_submodule(name))
        x = torch.stack([head(x[:, i]) for i in range(v)], 1) if objective.views_apart else head(x.flatten(0, 1)).view(n, v, -1)
    return plain(x)
