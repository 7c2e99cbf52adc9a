"""The base class of pretext tasks: parameters, `draw`, `render` and a label kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pipeline.engines.vocabulary import Drawn, Windows
from pipeline.labels import Classes, LabelKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from pipeline.draws import Stream
    from pipeline.engines.vocabulary import Ops


def _objective(value: Any) -> Any:
    if value is None or isinstance(value, str) or (isinstance(value, dict) and all(isinstance(key, str) for key in value)):
        return value
    raise ValueError("needs a name, or a mapping of a name and parameters, such as `{name: moco, temperature: 0.2}`")


ObjectiveChoice = Annotated[str | dict[str, Any] | None, BeforeValidator(_objective)]

ANNOTATION, WEIGHT = "annotation.", ".weight"
"""Prefix of the columns of `corpus.annotations`, and ending of those that weigh labels."""


class Task(BaseModel, ABC):
    """A pretext task. Its fields are its parameters, and therefore its section of the recipe.

    A subclass in a file of `pipeline/tasks/` is registered by being there; one in another installed package by an entry point of
    the group `pseudolabel.tasks`. Recipes name a task by its `name`.
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
        description="Name of the task, if its key in the recipe is a name of your own.",
    )

    default_objective: ClassVar[str | None] = None
    """Objective if the recipe names none; None for the label kind's default."""

    input_norm: ClassVar[Literal["image", "patch"]] = "image"
    """Statistics by which the trainer standardises the input: the corpus's of each channel, or each patch's own."""

    frames: ClassVar[int] = 1
    """Number of frames of a sample that the task needs; it gets the crops of several frames below each other."""

    learns_classes: ClassVar[bool] = False
    """Whether it learns the class of the image itself, the column `class`, of the images of which it is known."""

    @abstractmethod
    def label_kind(self) -> LabelKind:
        """The kind of label, with its sizes."""

    def check(self, size: int) -> None:
        """Check that the parameters work on crops of `size` x `size` pixels.

        Raises:
            ValueError: they do not; the message has the reason and the nearest parameters that would work.
        """

    @abstractmethod
    def input_shape(self, size: int) -> tuple[int, ...]:
        """Shape of one input for crops of `size` pixels: (h, w, c), or (k, h, w, c) for k patches. Always uint8."""

    def view_columns(self, size: int) -> dict[str, tuple[int, int]]:
        """The columns of a task that cuts its own windows, by name, such as `input`: number of views and their side, pixels.

        It is empty for a task that gets the crop that tasks share.
        """
        return {}

    def windows(self, rng: Stream, heights: np.ndarray, widths: np.ndarray, size: int) -> Windows:
        """Draw the windows of a task that cuts its own, in the order of `view_columns`; not called for other tasks.

        Args:
            rng: as in `draw`.
            heights: (n,) photo heights, upright.
            widths: (n,) photo widths.
            size: as in `draw`.
        """
        raise NotImplementedError(f"{self.name} gets the crop that tasks share")

    @abstractmethod
    def draw(self, rng: Stream, size: int) -> Drawn:
        """Draw the parameters of n samples on the host, the label among them.

        Args:
            rng: numbers keyed by (seed, epoch, sample key, this task's name); `rng.n` is n.
            size: side of the square crop in pixels.

        Returns:
            Arrays with n rows; `label` (and `mask`, and `weight`) become columns of the batch unchanged. For a task with its own
            windows the second axis is the view: (n, v, ...).
        """

    def given(self, known: Mapping[str, np.ndarray]) -> Drawn:
        """What is not drawn but known of n samples; it replaces what `draw` returned under the same names.

        Args:
            known: int64 (n,) each, -1 where a sample has none: `class`, and the labels of `corpus.annotations`, their names after
                `ANNOTATION`. Where a column weighs these, float32 (n,), the same name with `WEIGHT` after it.
        """
        return {}

    @abstractmethod
    def render(self, ops: Ops, image: Any, drawn: Drawn) -> Any:
        """Make the input from the crops by the drawn parameters, with the operations of `pipeline.engines.vocabulary`.

        For a task with its own windows it is called once for each view, with the parameters of that view, and returns an image of
        the same size.

        Args:
            ops: the operations of the engine.
            image: the crops, (size, size, 3) each; for a task of several frames (frames * size, size, 3), in their order.
            drawn: the parameters that `draw` returned.
        """

    def caption(self, drawn: Drawn) -> str:
        """Describe a sample's label for people, in one or two short lines, for pictures of pairs.

        Args:
            drawn: one sample's row of what `draw` returned.
        """
        kind = self.label_kind()
        return f"class {drawn['label'] + 1} of {kind.count}" if isinstance(kind, Classes) else "what it looked like"
