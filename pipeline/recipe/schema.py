"""The recipe: the one validated document that describes a run, section by section.

Every field carries its description, from which the recipe reference in the docs is made.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from pipeline.recipe.corpus import CorpusSection, Image
from pipeline.recipe.downstream import Downstream
from pipeline.recipe.execution import Failures, Placement
from pipeline.recipe.outputs import Render, Storage, Tracking
from pipeline.recipe.section import Section
from pipeline.recipe.suggest import unknown_name
from pipeline.recipe.training import Training
from pipeline.tasks import Task, registry


def _tasks(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    tasks: dict[str, Task] = {}
    errors: list[InitErrorDetails] = []
    for name, given in value.items():
        if isinstance(given, Task):
            tasks[name] = given
        elif name not in registry():
            error = PydanticCustomError("unknown_task", "{words}", {"words": unknown_name("task", str(name), registry())})
            errors.append({"type": error, "loc": (str(name),), "input": None})
        else:
            try:
                tasks[name] = registry()[name].model_validate({} if given is None else given)
            except ValidationError as refused:
                errors += [
                    {
                        "type": PydanticCustomError(e["type"], "{words}", {"words": e["msg"]}),
                        "loc": (name, *e["loc"]),
                        "input": e["input"],
                    }
                    for e in refused.errors()
                ]
    if errors:
        raise ValidationError.from_exception_data("tasks", errors)
    return tasks


class Recipe(Section):
    """One run, from shards to results."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run and of its folder.")
    seed: int = Field(
        ge=0,
        lt=2**63,
        strict=True,
        description="All random numbers depend on it. Required, so that every run can be repeated.",
    )
    corpus: CorpusSection
    image: Image = Image()
    tasks: Annotated[dict[str, SerializeAsAny[Task]], BeforeValidator(_tasks)] = Field(
        default_factory=dict, description="Pretext tasks by name, each with its parameters (`{}` for the defaults)."
    )
    engine: Literal["auto", "cpu", "dali"] = Field("auto", description="`auto` means `dali` where a GPU is visible, else `cpu`.")
    placement: Placement = Placement()
    failures: Failures = Failures()
    training: Training = Training()
    downstream: Downstream | None = None
    render: Render = Render()
    storage: Storage = Storage()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _engine_fits(self) -> Recipe:
        if self.image.reduced and self.engine == "dali":
            raise ValueError("image.reduced: DALI decodes at full size only; take `engine: cpu`, or leave `reduced` out")
        return self

    @model_validator(mode="after")
    def _tasks_fit(self) -> Recipe:
        for name, task in self.tasks.items():
            try:
                if task.frames > (self.corpus.frames or 1):
                    raise ValueError(
                        f"it needs {task.frames} frames of a sample, and `corpus.frames` is {self.corpus.frames or 'not set'}: "
                        f"set `corpus.frames: {task.frames}` if the corpus's samples have as many images"
                    )
                task.check(self.image.size)
            except ValueError as error:
                raise ValueError(f"tasks.{name}: {error}") from None
        return self

    def canonical(self) -> str:
        """The resolved recipe as JSON with sorted keys; equal recipes give equal strings."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    def digest(self) -> str:
        """SHA-256 of `canonical()`, hexadecimal."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()
