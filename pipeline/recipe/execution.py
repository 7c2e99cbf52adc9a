"""The recipe's sections `placement` and `failures`: where pairs are rendered, and which failures a run survives."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer

from pipeline.recipe.section import Section, without_defaults


def _budget(value: Any) -> Any:
    number = float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value  # `1e-3` may be a text
    if (type(number) is int and number >= 0) or (isinstance(number, float) and 0 <= number < 1):
        return number
    raise ValueError("needs a count of samples (0, 1, 2, ...) or a share of them (at least 0, below 1)")


_NUMBER = re.compile(r"\d+(\.\d*)?[eE][-+]?\d+")
Budget = Annotated[int | float, BeforeValidator(_budget)]


class Placement(Section):
    """Where pairs are rendered, and with which resources."""

    render: Literal["workers", "trainer"] = Field(
        "workers",
        description="`workers`: Ray Data actors render and send pixels; `trainer`: encoded bytes are sent and rendered "
        "beside the network.",
    )
    actors: int = Field(1, ge=1, description="Number of rendering (or reading) actors.")
    cpus: float = Field(1.0, gt=0, description="Logical CPUs of each actor.")
    gpus: float = Field(0.0, ge=0, description="GPUs, or a fraction of one, of each actor.")
    threads: int = Field(1, ge=1, description="Decoding threads of each actor.")


class Failures(Section):
    """How many failures a run survives before it stops."""

    budget: Budget = Field(
        0.01, description="Quarantined samples allowed: a count (integer) or a share of the samples seen (below 1)."
    )
    restarts: int = Field(3, ge=0, description="How often a run restarts from its checkpoint after a worker or node is lost.")
    stall_seconds: float = Field(
        600.0,
        gt=0,
        description="Seconds that a stage may make no progress while training waits for a batch; then an error names the stage.",
    )
    collapse: Literal["stop", "warn", "off"] = Field(
        "stop",
        description="What happens where a task of views collapses, so that the network gives all photos the same features.",
    )

    @model_serializer(mode="wrap")
    def _used(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults(self, serialize(self), "collapse")
