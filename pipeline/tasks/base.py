"""What a pretext task is: parameters, a draw, a render, a label kind. One file a task; this one holds what they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pipeline.engines.vocabulary import Drawn, Windows
from pipeline.labels import Classes, LabelKind

if TYPE_CHECKING:
    import numpy as np

    from pipeline.draws import Stream
    from pipeline.engines.vocabulary import Ops


def _objective(value: Any) -> Any:
    if value is None or isinstance(value, str) or (isinstance(value, dict) and all(isinstance(key, str) for key in value)):
        return value
    raise ValueError("needs a name, or a mapping of a name and parameters, such as `{name: moco, temperature: 0.2}`")


ObjectiveChoice = Annotated[str | dict[str, Any] | None, BeforeValidator(_objective)]


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
    objective: ObjectiveChoice = Field(
        None,
        description="Objective to use in place of the default: a name, or a mapping of `name` and the objective's parameters.",
    )
    task: str | None = Field(
        None,
        exclude_if=lambda kind: kind is None,
        description="Name of the task, where its key in the recipe is a name of your own.",
    )

    default_objective: ClassVar[str | None] = None
    """Objective of a recipe that names none; None for the label kind's own."""

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

    def view_columns(self, size: int) -> dict[str, tuple[int, int]]:
        """The columns of a task that cuts its own windows: by name, such as `input`, how many views it holds and their side.

        Empty for a task that is given the crop which all tasks share.
        """
        return {}

    def windows(self, rng: Stream, heights: np.ndarray, widths: np.ndarray, size: int) -> Windows:
        """Draw the windows of a task that cuts its own, in the order of `view_columns`; others are not asked.

        Args:
            rng: as of `draw`.
            heights: (n,) photo heights, upright.
            widths: (n,) photo widths.
            size: as of `draw`.
        """
        raise NotImplementedError(f"{self.name} is given the crop that all tasks share")

    @abstractmethod
    def draw(self, rng: Stream, size: int) -> Drawn:
        """Draw the parameters of n samples on the host, the label among them.

        Args:
            rng: numbers keyed by (seed, epoch, sample key, this task's name); `rng.n` is n.
            size: side of the square crop in pixels.

        Returns:
            Arrays with n rows; `label` (and `mask`) go into the batch as they are. Of a task with its own windows (n, v, ...):
            the second axis is the view.
        """

    @abstractmethod
    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        """Carry out what was drawn on the crops, in the words of `pipeline.engines.vocabulary`; returns the input.

        A task with its own windows is asked once a view, with what was drawn for that view; it returns an image of the same size.

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
