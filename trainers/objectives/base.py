"""What an objective is: the head, the loss and the metric that turn a task's label into learning."""

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
    """How a task went on one batch. Sums, so that batches and workers add up.

    Args:
        loss: sum of the samples' losses, each times its weight; a float32 scalar with its graph.
        metric: sum of the samples' metric, each times its weight; a scalar without graph.
        trivial: the same sum for the answer that needs no learning (chance, or one colour), on the same samples.
        count: sum of the weights.
        also: sums like `metric` of further metrics, by name.
        cost: what is minimised in place of the loss, a scalar too, where that is another.
    """

    loss: Tensor
    metric: Tensor
    trivial: Tensor
    count: Tensor
    also: dict[str, Tensor] = field(default_factory=dict)
    cost: Tensor | None = None

    @property
    def minimised(self) -> Tensor:
        """Cost or loss, a float32 scalar."""
        return self.loss if self.cost is None else self.cost


class Objective(nn.Module, ABC):
    """Learns one kind of label. A subclass in `trainers/objectives/` is found by its file.

    What it keeps from step to step lies in buffers and in weights without gradients, which are equal on all ranks and part of the
    checkpoint. Each step calls `begin_step`, the forward and backward passes, `before_update`, the optimizer, `after_update`.

    Attributes:
        name: what a task's `objective` field calls it; the one named like its label kind is that kind's default.
        kind: the label kind that it learns.
        needs: the backbone's outputs that it reads.
        metric: name of the metric.
        higher_is_better: whether a larger metric is a better one.
        step, steps: the step that is being made, and how many the run has.
    """

    name: ClassVar[str]
    kind: ClassVar[type[LabelKind]]
    needs: ClassVar[tuple[Output, ...]]
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]

    class Parameters(BaseModel):
        """What a task may set beside the name: `objective: {name: moco, temperature: 0.2}`."""

        model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    step: int = 0
    steps: int = 1

    @abstractmethod
    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__()

    def begin_step(self, step: int, steps: int) -> None:
        """Called before each forward pass of training."""
        self.step, self.steps = step, steps

    def before_update(self) -> None:
        """Called when the gradients are there: a layer whose gradients are set to None is left as it is."""

    def after_update(self, backbone: Backbone) -> None:
        """Called after the optimizer's step, without gradients: momentum networks, queues and centres move here."""

    def forward(self, backbone: Backbone, batch: dict[str, Tensor], name: str, pixels: Normaliser) -> Outcome:
        """Answer in the precision of the run, and judge the answer in float32, whatever that precision is.

        Args:
            backbone: the shared network.
            batch: columns of the batch, on the network's device.
            name: the task's name in the recipe, which its columns begin with.
            pixels: normalises uint8 pixels.
        """
        answer = self.answer(backbone, batch, name, pixels)
        with in_float32(answer.device):
            return self.judge(answer.float(), batch, name)

    @abstractmethod
    def answer(self, backbone: Backbone, batch: dict[str, Tensor], name: str, pixels: Normaliser) -> Tensor:
        """Run the task's input through the backbone and the head; arguments as of `forward`."""

    @abstractmethod
    def judge(self, answer: Tensor, batch: dict[str, Tensor], name: str) -> Outcome:
        """Loss and metrics of what `answer` gave, in float32."""


def chosen(task: Task) -> tuple[str | None, dict[str, Any]]:
    """The name that a task gives its objective, if it gives one, and the parameters beside it."""
    given = task.objective if task.objective is not None else task.default_objective
    if not isinstance(given, dict):
        return given, {}
    return given.get("name", task.default_objective), {key: value for key, value in given.items() if key != "name"}
