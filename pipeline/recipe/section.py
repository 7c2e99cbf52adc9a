"""What every section of a recipe shares: how it is checked, and how shards are named."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Section(BaseModel):
    """A part of the recipe: unknown keys are refused, and nothing changes after it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def without_defaults(section: Section, document: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Leave newer keys that are not set out of a section's canonical form, so that recipes without them keep theirs."""
    fields = type(section).model_fields
    unset = {key for key in keys if getattr(section, key) == fields[key].get_default(call_default_factory=True)}
    return {key: value for key, value in document.items() if key not in unset}


def _shards(value: Any) -> Any:
    one = value if isinstance(value, list) else [value]
    if not one or not all(isinstance(url, str) and url.strip() for url in one):
        raise ValueError("needs a path, a pattern or a URL, or a list of these")
    return value


Shards = Annotated[str | list[str], BeforeValidator(_shards)]
