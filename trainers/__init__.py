"""The learning plane: pairs in, a backbone out, and what it is worth downstream.

from trainers import evaluate, finetune, pretrain
"""

from __future__ import annotations

from typing import Any

__all__ = ["evaluate", "finetune", "pretrain"]

_HOMES = {
    "pretrain": "trainers.pretraining",
    "finetune": "trainers.downstream.finetune",
    "evaluate": "trainers.downstream.evaluate",
}


def __getattr__(name: str) -> Any:  # loaded at first use: torch and Ray take seconds
    if name not in _HOMES:
        raise AttributeError(f"module 'trainers' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
