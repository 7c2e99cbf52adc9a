"""The recipe: the one validated document that describes a run, section by section.

Every field carries its description, from which the recipe reference in the docs is made.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from pipeline.recipe.corpus import CorpusSection, Image
from pipeline.recipe.downstream import Downstream
from pipeline.recipe.execution import Failures, Placement
from pipeline.recipe.outputs import Render, Storage, Tracking
from pipeline.recipe.rounds import Rounds
from pipeline.recipe.section import Section, without_defaults
from pipeline.recipe.suggest import unknown_name
from pipeline.recipe.training import Training
from pipeline.recipe.transfer import Transfer
from pipeline.tasks import Task, registry

_OWN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_OTHER_CHANCE = ("crop", "task", "colours")
"""Streams of random numbers that are not a task's, see `pipeline.draws`."""


def _tasks(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    tasks: dict[str, Task] = {}
    errors: list[InitErrorDetails] = []

    def refuse(kind: str, words: str, where: tuple[Any, ...], given: Any = None) -> None:
        errors.append({"type": PydanticCustomError(kind, "{words}", {"words": words}), "loc": where, "input": given})

    for name, given in value.items():
        by_name = given.get("task") if isinstance(given, dict) else given.name if isinstance(given, Task) else None
        kind = name if by_name is None else by_name
        if not isinstance(given, Task) and (not isinstance(kind, str) or kind not in registry()):
            where = (str(name),) if by_name is None else (str(name), "task")
            refuse("unknown_task", unknown_name("task", str(kind), registry()), where)
        elif kind != name and (words := _own_name_refused(name, kind)):
            refuse("unknown_task", words, (str(name),))
        elif isinstance(given, Task):
            tasks[name] = given.model_copy(update={"task": None if kind == name else kind})
        else:
            try:
                parameters = {**given, "task": None if kind == name else kind} if isinstance(given, dict) else given
                tasks[name] = registry()[kind].model_validate({} if given is None else parameters)
            except ValidationError as refused:
                for e in refused.errors():
                    if e["type"] == "extra_forbidden":
                        refuse("unknown_key", unknown_name("key", str(e["loc"][-1]), registry()[kind].model_fields), (name,))
                    else:
                        refuse(e["type"], e["msg"], (name, *e["loc"]), e["input"])
    if errors:
        raise ValidationError.from_exception_data("tasks", errors)
    return tasks


def _own_name_refused(name: Any, kind: str) -> str | None:
    """Why a task of that kind cannot have that name, or None."""
    if not isinstance(name, str) or not _OWN_NAME.fullmatch(name):
        return f"a name of your own begins with a letter and has letters, digits, `_` and `-`, such as `{kind}_2`"
    if name in registry() or name in _OTHER_CHANCE:
        return f"this name is taken; give the `{kind}` one of your own, such as `{kind}_2`"
    return None


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
        default_factory=dict,
        description="Pretext tasks by name, each with its parameters (`{}` for the defaults). Several of one kind have names of "
        "your own, and `task: <name of the task>` among their parameters.",
    )
    engine: Literal["auto", "cpu", "dali"] = Field("auto", description="`auto` means `dali` where a GPU is visible, else `cpu`.")
    placement: Placement = Placement()
    failures: Failures = Failures()
    training: Training = Training()
    rounds: Rounds | None = Field(None, exclude_if=lambda rounds: rounds is None)
    downstream: Downstream | None = None
    transfer: Transfer | None = None
    render: Render = Render()
    storage: Storage = Storage()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _engine_fits(self) -> Recipe:
        if self.image.reduced and self.engine == "dali":
            raise ValueError("image.reduced: DALI decodes at full size only; take `engine: cpu`, or leave `reduced` out")
        return self

    @model_validator(mode="after")
    def _rounds_fit(self) -> Recipe:
        if self.rounds is not None and self.corpus.mix:
            raise ValueError("corpus.mix: rounds are made of one corpus; name it by `corpus.shards`")
        return self

    @model_validator(mode="after")
    def _tasks_fit(self) -> Recipe:
        for name, task in self.tasks.items():
            try:
                self.check_task(task)
            except ValueError as error:
                raise ValueError(f"tasks.{name}: {error}") from None
        return self

    @model_serializer(mode="wrap")
    def _canonical(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(self, handler(self), "transfer")

    def check_task(self, task: Task) -> None:
        """Check that a task can be made of this recipe's samples and crops.

        Raises:
            ValueError: it cannot; the message says what would help.
        """
        if task.frames > (self.corpus.frames or 1):
            raise ValueError(
                f"it needs {task.frames} frames of a sample, and `corpus.frames` is {self.corpus.frames or 'not set'}: "
                f"set `corpus.frames: {task.frames}` if the corpus's samples have as many images"
            )
        wanted = getattr(task, "annotation", None)
        if wanted is not None and wanted not in self.corpus.annotations:
            there = ", ".join(self.corpus.annotations) or "it is empty"
            raise ValueError(f"`corpus.annotations` has no {wanted!r} ({there}): name the tables of its labels there")
        task.check(self.image.size)

    def canonical(self) -> str:
        """The resolved recipe as JSON with sorted keys; equal recipes give equal strings."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    def digest(self) -> str:
        """SHA-256 of `canonical()`, hexadecimal."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()
