"""The network of a pretraining run: one backbone and an objective a task, with a single forward for a step."""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from trainers.backbones import Output, build_backbone, seeded
from trainers.inputs import Normaliser, decodable
from trainers.objectives import Outcome, build_objective, objective_class


class PretextModel(nn.Module):
    """A backbone that learns all tasks of a recipe at once.

    It has no weight that a step leaves without a gradient, so distributed training need not look for any. Samples of weight 0
    touch neither losses nor metrics nor gradients.

    Attributes:
        backbone: the shared network, built for just the outputs that the tasks read.
        objectives: by task name, in the recipe's order.

    Args:
        recipe: `training.backbone`, `image` and `tasks` are read.
        seed: of all weights.

    Raises:
        UserError: no tasks, an unknown backbone or objective.
    """

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__()
        if not recipe.tasks:
            raise UserError("tasks: pretraining needs at least one, such as `rotation: {}`")
        read = {objective_class(task).needs for task in recipe.tasks.values()}
        outputs: tuple[Output, ...] = tuple(output for output in ("vector", "map") if output in read)
        size = recipe.image.size
        self.backbone = build_backbone(recipe.training.backbone, size, seed, outputs)
        with seeded(seed):
            heads = {name: build_objective(task, self.backbone, size) for name, task in recipe.tasks.items()}
        self.objectives = nn.ModuleDict(heads)
        self.pixels = Normaliser(recipe.image.mean, recipe.image.std)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Outcome]:
        """The outcome of every task on a batch of columns that are on the module's device (`trainers.inputs.to_device`)."""
        n = len(batch["weight"])
        batch, rows = decodable(batch)
        outcomes: dict[str, Outcome] = {}
        for name, objective in self.objectives.items():
            outcome = objective(self.backbone, batch, name, self.pixels)
            outcomes[name] = outcome if rows is None else outcome.among(rows, n)
        return outcomes
