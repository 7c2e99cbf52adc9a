"""The network of a pretraining run: one backbone and an objective a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.labels import Views
from pipeline.recipe import Recipe
from pipeline.shards.annotations import class_sizes
from pipeline.tasks.assigned import Assigned
from trainers.networks.backbones import Output, build_backbone, seeded
from trainers.networks.batch_norm import with_global_batch_norm
from trainers.networks.inputs import Normaliser, of_task
from trainers.networks.start import start_from
from trainers.objectives import Outcome, build_objective, objective_class
from trainers.objectives.classes import ClassesObjective

HEADS = "heads"
"""The name, in a file of weights, of the classifiers of tasks `assigned`: their state by the task's name."""


def batch_norm(recipe: Recipe) -> Literal["local", "global"]:
    """Batch normalisation of a recipe's network: `training.batch_norm`, or else `global` if a task compares views."""
    if recipe.training.batch_norm is not None:
        return recipe.training.batch_norm
    return "global" if any(isinstance(task.label_kind(), Views) for task in recipe.tasks.values()) else "local"


class PretextModel(nn.Module):
    """A backbone that learns all tasks of a recipe at once.

    Every weight gets a gradient in every step, so distributed training need not look for unused ones. Samples of weight 0 affect
    neither losses nor metrics, and no other sample either if `trainers.networks.inputs.decodable` has left them out.

    Attributes:
        backbone: the shared network, built for just the outputs that the tasks read.
        objectives: the objectives by task name, in the recipe's order.
        log_variances: the logarithms of the variances by task name, if the tasks' weights are learnt.

    Args:
        recipe: `training.backbone`, `training.task_weights`, `training.batch_norm`, `image` and `tasks` are read.
        seed: seed of all weights.

    Raises:
        UserError: there are no tasks, or a backbone or objective is unknown.
    """

    def __init__(self, recipe: Recipe, seed: int) -> None:
        super().__init__()
        if not recipe.tasks:
            raise UserError("tasks: pretraining needs at least one, such as `rotation: {}`")
        read = {output for name, task in recipe.tasks.items() for output in objective_class(task, name).needs}
        outputs: tuple[Output, ...] = tuple(output for output in ("vector", "map") if output in read)
        size = recipe.image.size
        self.backbone = build_backbone(recipe.training.backbone, size, seed, outputs)
        url = recipe.training.backbone.weights
        saved = {} if url is None else start_from(self.backbone, url)
        with seeded(seed):
            heads = {name: build_objective(task, self.backbone, size, name) for name, task in recipe.tasks.items()}
        self.objectives = nn.ModuleDict(heads)
        self._tasks = recipe.tasks
        self._prepare_assigned(recipe, saved.get(HEADS, {}))
        if batch_norm(recipe) == "global":
            with_global_batch_norm(self)
        self.pixels = Normaliser(recipe.image.mean, recipe.image.std)
        self.weights = {name: task.weight for name, task in recipe.tasks.items()}
        # Logarithms of the variances of Kendall et al. 2018: learnt, one a task.
        learnt = recipe.tasks if recipe.training.task_weights == "uncertainty" else {}
        self.log_variances = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in learnt})

    def heads(self) -> dict[str, dict[str, Tensor]]:
        """The classifiers of tasks `assigned`, as in a file of weights under `HEADS`."""
        return {name: objective.head.state_dict() for name, _, objective in self._assigned()}

    def _assigned(self) -> Iterator[tuple[str, Assigned, ClassesObjective]]:
        for name, task in self._tasks.items():
            objective = self.objectives[name]
            if isinstance(task, Assigned) and isinstance(objective, ClassesObjective):
                yield name, task, objective

    def _prepare_assigned(self, recipe: Recipe, saved: Mapping[str, Any]) -> None:
        for name, task, objective in self._assigned():
            if task.balance:
                objective.balance(class_sizes(recipe.corpus.annotations[task.annotation]))
            if task.head == "kept":
                try:
                    objective.head.load_state_dict(saved[name])
                except (KeyError, RuntimeError):
                    raise UserError(
                        f"tasks.{name}.head: training.backbone.weights holds no classifier of {task.classes} classes under that "
                        "name: leave `head` out, or name the backbone.pt of a run with this task"
                    ) from None

    def forward(self, batch: dict[str, Tensor], only: str | None = None) -> dict[str, Outcome]:
        """Compute the outcome of every task on a batch.

        If there is a column `task`, int64 (n,), a sample counts only for the task of that number.

        Args:
            batch: columns on the module's device (`trainers.networks.inputs.to_device`).
            only: name of the only task to compute; None for all.
        """
        outcomes: dict[str, Outcome] = {}
        for number, (name, objective) in enumerate(self.objectives.items()):
            if only not in (None, name):
                continue
            own = of_task(batch, name, number) if "task" in batch else batch
            outcomes[name] = self._weighed(name, objective(self.backbone, own, name, self.pixels))
        return outcomes

    def _weighed(self, name: str, outcome: Outcome) -> Outcome:
        """The outcome with its cost: the loss times the task's weight, or weighted by uncertainty.

        Uncertainty: loss / variance + log(variance) / 2 (Kendall et al. 2018, equation 10), times the task's weight. The second
        term belongs to the task and not to a sample; it counts once for each sample, as the loss does.
        """
        if name not in self.log_variances:
            return replace(outcome, cost=self.weights[name] * outcome.loss)
        log_variance = self.log_variances[name]
        precision = (-log_variance).exp()
        cost = self.weights[name] * (precision * outcome.loss + log_variance / 2 * outcome.count)
        return replace(outcome, cost=cost, also={**outcome.also, "precision": precision.detach() * outcome.count})
