"""The engines that turn encoded bytes and drawn parameters into pixels."""

from __future__ import annotations

from functools import cache

from pipeline.engines.base import Engine, Request, pixel_shapes
from pipeline.recipe.schema import Recipe

__all__ = ["Engine", "Request", "build_engine", "engine_name", "gpus_visible", "pixel_shapes"]


@cache
def gpus_visible() -> int:
    """How many NVIDIA GPUs this process can use."""
    import torch

    return torch.cuda.device_count()


def engine_name(recipe: Recipe) -> str:
    """The engine that the recipe means on this machine: `auto` is `dali` where a GPU is visible, else `cpu`."""
    if recipe.engine != "auto":
        return recipe.engine
    return "dali" if gpus_visible() else "cpu"


def build_engine(recipe: Recipe, threads: int = 1) -> Engine:
    """The recipe's engine, ready to run."""
    if engine_name(recipe) == "cpu":
        from pipeline.engines.cpu import CpuEngine

        return CpuEngine(recipe.tasks, recipe.image.size, threads)
    from pipeline.engines.dali import DaliEngine

    return DaliEngine(recipe.tasks, recipe.image.size, threads, device_id=0 if gpus_visible() else None)
