"""What a pretext task is: parameters, a draw, a render, a label kind. One file a task; this one holds what they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.engines.vocabulary import Drawn
from pipeline.labels import Classes, LabelKind

if TYPE_CHECKING:
    from pipeline.draws import Stream
    from pipeline.engines.vocabulary import Ops


class Task(BaseModel, ABC):
    """A pretext task. Its fields are its parameters, and therefore its part of the recipe.

    A subclass in `pipeline/tasks/` is found by its file; one in another installed package by the entry point group
    `pseudolabel.tasks`. Its name is the class's `name`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: ClassVar[str]
    source: ClassVar[str]
    """The paper that the task comes from."""

    weight: float = Field(1.0, gt=0, description="Share of this task's loss in the sum of all tasks' losses.")
    objective: str | None = Field(None, description="Objective to use in place of the label kind's default.")

    input_norm: ClassVar[Literal["image", "patch"]] = "image"
    """Over what the trainer standardises the input: the corpus's channel statistics, or each patch's own."""

    frames: ClassVar[int] = 1
    """How many frames of a sample it looks at; of more than one it is given their crops below each other."""

    @abstractmethod
    def label_kind(self) -> LabelKind:
        """The kind of label, with its sizes."""

    def check(self, size: int) -> None:
        """Refuse parameters that cannot work on crops of `size` x `size` pixels.

        Raises:
            ValueError: with the reason and the nearest parameters that would work.
        """

    @abstractmethod
    def input_shape(self, size: int) -> tuple[int, ...]:
        """Shape of one input for crops of `size` pixels: (h, w, c), or (k, h, w, c) for k patches. Always uint8."""

    @abstractmethod
    def draw(self, rng: Stream, size: int) -> Drawn:
        """Draw the parameters of n samples on the host, the label among them.

        Args:
            rng: numbers keyed by (seed, epoch, sample key, this task's name); `rng.n` is n.
            size: side of the square crop in pixels.

        Returns:
            Arrays with n rows; `label` (and `mask`) go into the batch as they are.
        """

    @abstractmethod
    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        """Carry out what was drawn on the crops, in the words of `pipeline.engines.vocabulary`; returns the input.

        Args:
            ops: the engine.
            image: the crops, (size, size, 3) each; of a task of several frames (frames * size, size, 3), in their order.
            drawn: what `draw` returned.
        """

    def caption(self, drawn: Drawn) -> str:
        """What a person would call a sample's label, for pictures of pairs: a line or two of a few words.

        Args:
            drawn: one sample's row of what `draw` returned.
        """
        kind = self.label_kind()
        return f"class {drawn['label'] + 1} of {kind.count}" if isinstance(kind, Classes) else "what it looked like"
