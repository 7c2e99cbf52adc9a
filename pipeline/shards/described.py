"""Reads the files that describe what a job has written, and checks them against its manifest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, NonNegativeInt, ValidationError

from pipeline.errors import UserError
from pipeline.storage import join, read_all, without_secrets

MANIFEST, SHARDS = "manifest.json", "shards.parquet"
MANIFEST_VERSION = 1


class _Totals(BaseModel):
    shards: NonNegativeInt
    failed: NonNegativeInt
    samples: NonNegativeInt
    pairs: NonNegativeInt
    quarantined: NonNegativeInt


class _Manifest(BaseModel):
    """The keys of a manifest that are checked."""

    version: int
    complete: bool
    totals: _Totals
    sha256: dict[str, str]


def read_described(
    url: str, names: Sequence[str], noun: str, makers: str, unchecked: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Read the manifest of a folder, and files that it names.

    Args:
        url: the folder.
        names: the files.
        noun: what the folder is, for errors.
        makers: the command that makes such folders, for errors, such as "`pseudolabel render`".
        unchecked: files of which manifests of earlier versions have no checksum.

    Raises:
        UserError: there is no such folder, it is unfinished or damaged.
    """
    place, shown, again = join(url, MANIFEST), without_secrets(url), f"run the same {makers} again"
    try:
        manifest = json.loads(read_all(place))
        if isinstance(manifest, dict) and manifest.get("version") != MANIFEST_VERSION:
            raise UserError(f"{shown}: not a {noun} of version {MANIFEST_VERSION}")
        sums = _Manifest.model_validate(manifest).sha256
        files = {name: read_all(join(url, name)) for name in names}
    except FileNotFoundError:
        raise UserError(f"{shown}: no finished {noun} is there; {makers} makes or completes one") from None
    except ValidationError as error:
        (first, *_) = error.errors()
        words = f"{'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg']}"
        raise UserError(f"{without_secrets(place)} is damaged: {words}; {again}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{without_secrets(place)} is damaged: {error}; {again}") from None
    except OSError as error:
        raise UserError(f"{shown} cannot be read: {error}") from None
    for name, content in files.items():
        known = name in sums or name not in unchecked
        if known and hashlib.sha256(content).hexdigest() != sums.get(name):
            raise UserError(f"{without_secrets(join(url, name))} is not the one that the manifest names: {again}")
    return manifest, files
