"""What an objective is: the head, the loss and the metric that turn a task's label into learning."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar

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
        loss: of each sample, float32 (n,), with its graph; 0 for a sample of weight 0.
        metric: sum of the samples' metric, each times its weight; a scalar without graph.
        trivial: the same sum for the answer that needs no learning (chance, or one colour), on the same samples.
        count: sum of the weights.
        also: sums like `metric` of further metrics, by name.
        cost: what is minimised in place of the loss, float32 (n,), where that is another.
    """

    loss: Tensor
    metric: Tensor
    trivial: Tensor
    count: Tensor
    also: dict[str, Tensor] = field(default_factory=dict)
    cost: Tensor | None = None

    @property
    def minimised(self) -> Tensor:
        """Cost or loss of each sample, float32 (n,)."""
        return self.loss if self.cost is None else self.cost

    def among(self, rows: Tensor, n: int) -> Outcome:
        """The outcome on a batch of n samples of which only those at `rows`, int64, were looked at."""
        return replace(self, loss=self.loss.new_zeros(n).index_put((rows,), self.loss))


class Objective(nn.Module, ABC):
    """Learns one kind of label. A subclass in `trainers/objectives/` is found by its file.

    Attributes:
        name: what a task's `objective` field calls it; the one named like its label kind is that kind's default.
        kind: the label kind that it learns.
        needs: the backbone's output that it reads.
        metric: name of the metric.
        higher_is_better: whether a larger metric is a better one.
    """

    name: ClassVar[str]
    kind: ClassVar[type[LabelKind]]
    needs: ClassVar[Output]
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]

    @abstractmethod
    def __init__(self, task: Task, backbone: Backbone, image_size: int) -> None:
        super().__init__()

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
