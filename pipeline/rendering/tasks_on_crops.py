"""Renders the tasks of a recipe on crops that another process decoded; the pairs are the same to the last bit."""

from __future__ import annotations

import numpy as np

from pipeline.draws import Draws
from pipeline.recipe.schema import Recipe
from pipeline.rendering.renderer import Clock, Columns, draw_tasks
from pipeline.rendering.units import STAGES, chosen_task


class CropTaskRenderer:
    """Makes the pairs of batches that came with crops only, as the CPU engine does.

    Args:
        recipe: the recipe.
        threads: CPU threads; what is made does not depend on them.
    """

    def __init__(self, recipe: Recipe, threads: int = 1) -> None:
        from pipeline.engines.inputs import Threads

        self._recipe, self._threads = recipe, Threads(threads)

    def __call__(self, columns: Columns, epoch: int) -> None:
        """Add inputs and labels to a batch's columns, and the time that this took, as stage `tasks` of `seconds`.

        Args:
            columns: `id`, `weight`, `image`, `seconds`, for clips `frames`, and any others; changed in place.
            epoch: number of the epoch.
        """
        from pipeline.engines.inputs import inputs_of

        started = Clock()
        drawn, labels = draw_tasks(self._recipe, Draws(self._recipe.seed, epoch, columns["id"]), columns)
        crops = columns["frames" if "frames" in columns else "image"]
        inputs = inputs_of(self._recipe.tasks, crops, drawn, self._threads)
        bad = columns["weight"] == 0
        if bad.any():  # their crops are black, which some tasks paint over
            for pixels in inputs.values():
                pixels[bad] = 0
        columns |= {**inputs, **labels, **chosen_task(self._recipe, epoch, columns["id"])}
        tasks = STAGES.index("tasks")
        columns["seconds"][:, [tasks, len(STAGES) + tasks]] = np.array(Clock().since(started)) / len(bad)
