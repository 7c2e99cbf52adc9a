"""The base class of objectives: head, loss and metric by which a network learns from a task's label."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from pipeline.labels import LabelKind
from pipeline.tasks import Task
from trainers.networks.backbones import Backbone, Output
from trainers.networks.inputs import Normaliser
from trainers.networks.precision import in_float32


@dataclass(frozen=True)
class Outcome:
    """Loss and metrics of a task on one batch, as sums, so that those of batches and workers can be added.

    Args:
        loss: sum of the samples' losses, each times its weight; a float32 scalar with its graph.
        metric: sum of the samples' metric, each times its weight; a scalar without graph.
        trivial: the metric of the trivial answer, which needs no learning (chance, or one colour), summed over the same samples.
        count: sum of the weights.
        also: further metrics, summed like `metric`, by name.
        counts: by how much those of `also` are divided that are not means over the samples of `count`, by name.
        cost: scalar that is minimised in place of the loss; None to minimise the loss.
        aside: scalar that is minimised as well, whatever the weight of the task: the loss of an adversary.
    """

    loss: Tensor
    metric: Tensor
    trivial: Tensor
    count: Tensor
    also: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    cost: Tensor | None = None
    aside: Tensor | None = None

    def __add__(self, other: Outcome) -> Outcome:
        """Add the sums of another part of the batch; what is minimised is left out."""
        return Outcome(
            loss=self.loss + other.loss,
            metric=self.metric + other.metric,
            trivial=self.trivial + other.trivial,
            count=self.count + other.count,
            also={name: value + other.also[name] for name, value in self.also.items()},
            counts={name: value + other.counts[name] for name, value in self.counts.items()},
        )

    @property
    def minimised(self) -> Tensor:
        """The scalar to minimise: the cost if there is one, else the loss, and what is minimised aside; float32."""
        cost = self.loss if self.cost is None else self.cost
        return cost if self.aside is None else cost + self.aside


class Objective(nn.Module, ABC):
    """Learns one kind of label. A subclass in a file of `trainers/objectives/` is registered by being there.

    An objective keeps its state from step to step in buffers and in weights without gradients. They are equal on all ranks and
    part of the checkpoint. Each step calls `begin_step`, the forward and backward passes, `before_update`, the optimizer, and
    `after_update`.

    Attributes:
        name: its name in a task's `objective` field; an objective with the name of a label kind is the default of that kind.
        kind: the label kind that it learns.
        needs: the backbone's outputs that it reads.
        metric: name of the metric.
        higher_is_better: whether a larger metric is a better one.
        needs_whole_batch: whether a sample's loss, or what the objective keeps, depends on the other samples of the batch, which
            then cannot be computed in parts.
        step: the current step, from 0.
        steps: number of steps of the run.
    """

    name: ClassVar[str]
    kind: ClassVar[type[LabelKind]]
    needs: ClassVar[tuple[Output, ...]]
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]
    needs_whole_batch: ClassVar[bool] = False

    class Parameters(BaseModel):
        """Parameters that a recipe may set beside the objective's name: `objective: {name: moco, temperature: 0.2}`."""

        model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    step: int = 0
    steps: int = 1

    @abstractmethod
    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__()

    def begin_step(self, step: int, steps: int) -> None:
        """Called before each forward pass of training."""
        self.step, self.steps = step, steps

    def own_group(self) -> dict[str, Any] | None:
        """A parameter group of torch's optimizers, for weights with a learning rate of their own; None if there are none.

        It has the keys `params`, `lr` (the peak) and `weight_decay`, and further ones as the run's optimizer knows them.
        """
        return None

    def before_update(self) -> None:
        """Called between the backward pass and the optimizer's step: weights whose gradient it sets to None do not change."""

    def after_update(self, backbone: Backbone) -> None:
        """Called after the optimizer's step, without gradients: updates momentum networks, queues and centres."""

    def forward(self, backbone: Backbone, batch: dict[str, Tensor], name: str, pixels: Normaliser) -> Outcome:
        """Compute the answer in the run's precision, then loss and metrics in float32.

        Args:
            backbone: the shared network.
            batch: columns of the batch, on the network's device.
            name: the task's name in the recipe, with which the names of its columns begin.
            pixels: normalises uint8 pixels.
        """
        answer = self.answer(backbone, batch, name, pixels)
        with in_float32(answer.device):
            return self.judge(answer.float(), batch, name)

    @abstractmethod
    def answer(self, backbone: Backbone, batch: dict[str, Tensor], name: str, pixels: Normaliser) -> Tensor:
        """Run the task's input through the backbone and the head; arguments as in `forward`."""

    @abstractmethod
    def judge(self, answer: Tensor, batch: dict[str, Tensor], name: str) -> Outcome:
        """Compute loss and metrics of what `answer` returned, in float32."""


def chosen_objective(task: Task) -> tuple[str | None, dict[str, Any]]:
    """The name of the objective that a task chooses, if it chooses one, and the parameters beside it."""
    given = task.objective if task.objective is not None else task.default_objective
    if not isinstance(given, dict):
        return given, {}
    return given.get("name", task.default_objective), {key: value for key, value in given.items() if key != "name"}
