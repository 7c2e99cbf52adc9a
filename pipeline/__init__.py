"""The data plane: WebDataset shards in, (input, pseudo-label) pairs out; it knows nothing of networks.

from pipeline import load_recipe, pairs
for batch in pairs(load_recipe("recipe.yaml"), epoch=0): ...
"""

from __future__ import annotations

from typing import Any

__all__ = ["Recipe", "Task", "dataset", "load_recipe", "open_corpus", "pairs", "parse_recipe", "registry"]

_MODULES = {
    "Recipe": "pipeline.recipe",
    "load_recipe": "pipeline.recipe",
    "parse_recipe": "pipeline.recipe",
    "Task": "pipeline.tasks",
    "registry": "pipeline.tasks",
    "dataset": "pipeline.streaming.pairs",
    "pairs": "pipeline.streaming.pairs",
    "open_corpus": "pipeline.shards.opening",
}


def __getattr__(name: str) -> Any:  # loaded at first use: `pseudolabel --help` must not wait for numpy and friends
    if name not in _MODULES:
        raise AttributeError(f"module 'pipeline' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_MODULES[name]), name)
