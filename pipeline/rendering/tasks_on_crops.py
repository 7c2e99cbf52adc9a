"""From crops to pairs: every task of a recipe on crops that were decoded elsewhere, the same to the last bit."""

from __future__ import annotations

import numpy as np

from pipeline.draws import Draws
from pipeline.recipe.schema import Recipe
from pipeline.rendering.renderer import Clock, Columns, draw_tasks
from pipeline.rendering.units import STAGES, chosen_task


class CropTaskRenderer:
    """Makes the pairs of batches whose crops came without them, as the CPU engine does.

    Args:
        recipe: the recipe.
        threads: CPU threads; what is made does not depend on them.
    """

    def __init__(self, recipe: Recipe, threads: int = 1) -> None:
        from pipeline.engines.cpu import Threads

        self._recipe, self._threads = recipe, Threads(threads)

    def __call__(self, columns: Columns, epoch: int) -> None:
        """Add to a batch's columns what is drawn and what is rendered, and as stage `tasks` of its `seconds` what that took.

        Args:
            columns: `id`, `weight`, `image`, of clips `frames`, and `seconds` among them.
            epoch: number of the epoch.
        """
        from pipeline.engines.cpu import inputs_of

        started = Clock()
        drawn, labels = draw_tasks(self._recipe, Draws(self._recipe.seed, epoch, columns["id"]))
        crops = columns["frames" if "frames" in columns else "image"]
        inputs = inputs_of(self._recipe.tasks, crops, drawn, self._threads)
        bad = columns["weight"] == 0
        if bad.any():  # their crops are black, which some tasks paint over
            for pixels in inputs.values():
                pixels[bad] = 0
        columns |= {**inputs, **labels, **chosen_task(self._recipe, epoch, columns["id"])}
        tasks = STAGES.index("tasks")
        columns["seconds"][:, [tasks, len(STAGES) + tasks]] = np.array(Clock().since(started)) / len(bad)
