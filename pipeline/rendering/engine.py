"""Which engine a recipe means, and that engine, ready to run."""

from __future__ import annotations

from pipeline.engines import Engine, gpus_visible
from pipeline.recipe.schema import Recipe


def settled(recipe: Recipe) -> Recipe:
    """The recipe with `auto` decided for a run on a cluster: `dali` where its rendering processes are given GPUs, else `cpu`.

    What DALI cannot do, decoding at reduced size, is the CPU's everywhere.

    Decided once, from the recipe: machines that see different things would render with different engines.
    """
    gpus = recipe.placement.gpus if recipe.placement.render == "workers" else recipe.training.gpus
    name = "dali" if gpus and not recipe.image.reduced else "cpu"
    return recipe if recipe.engine != "auto" else recipe.model_copy(update={"engine": name})


def engine_name(recipe: Recipe) -> str:
    """The engine that the recipe means in this process: `auto` is `dali` where a GPU is visible and it can, else `cpu`."""
    if recipe.engine != "auto":
        return recipe.engine
    return "dali" if gpus_visible() and not recipe.image.reduced else "cpu"


def build_engine(recipe: Recipe, threads: int = 1, gpu: int | None = None, crop: bool = True) -> Engine:
    """The recipe's engine, ready to run.

    Args:
        recipe: the recipe.
        threads: CPU threads.
        gpu: the GPU on which the pixels are wanted; an engine that renders there leaves them there. None wants them on the
            host, rendered by the first GPU, if there is one.
        crop: whether the crop that tasks share is wanted.
    """
    if engine_name(recipe) == "cpu":
        from pipeline.engines.cpu import CpuEngine

        return CpuEngine(recipe.tasks, recipe.image.size, threads, recipe.image.reduced, crop)
    from pipeline.engines.dali import DaliEngine

    stay, frames = gpu is not None, recipe.corpus.frames or 1
    device = gpu if stay else 0 if gpus_visible() else None
    return DaliEngine(recipe.tasks, recipe.image.size, threads, device, stay=stay, frames=frames, crop=crop)
