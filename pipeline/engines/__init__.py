"""The engines that turn encoded bytes and drawn parameters into pixels."""

from __future__ import annotations

from functools import cache

from pipeline.engines.base import Engine, Request, pixel_shapes
from pipeline.recipe.schema import Recipe

__all__ = ["Engine", "Request", "build_engine", "engine_name", "gpus_visible", "pixel_shapes", "settled"]


@cache
def gpus_visible() -> int:
    """How many NVIDIA GPUs this process can use."""
    import torch

    return torch.cuda.device_count()


def settled(recipe: Recipe) -> Recipe:
    """The recipe with `auto` decided for a run on a cluster: `dali` where its rendering processes are given GPUs, else `cpu`.

    Decided once, from the recipe: machines that see different things would render with different engines.
    """
    gpus = recipe.placement.gpus if recipe.placement.render == "workers" else recipe.training.gpus
    return recipe if recipe.engine != "auto" else recipe.model_copy(update={"engine": "dali" if gpus else "cpu"})


def engine_name(recipe: Recipe) -> str:
    """The engine that the recipe means in this process: `auto` is `dali` where a GPU is visible, else `cpu`."""
    if recipe.engine != "auto":
        return recipe.engine
    return "dali" if gpus_visible() else "cpu"


def build_engine(recipe: Recipe, threads: int = 1, gpu: int = 0) -> Engine:
    """The recipe's engine, ready to run.

    Args:
        recipe: the recipe.
        threads: CPU threads.
        gpu: which of the visible GPUs to use, where there are any.
    """
    if engine_name(recipe) == "cpu":
        from pipeline.engines.cpu import CpuEngine

        return CpuEngine(recipe.tasks, recipe.image.size, threads)
    from pipeline.engines.dali import DaliEngine

    return DaliEngine(recipe.tasks, recipe.image.size, threads, device_id=gpu if gpus_visible() else None)
