"""Reads the bytes of folders, and says in words how the files of two of them differ."""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_MOST_LINES, _MOST_LETTERS = 12, 400


def bytes_below(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def is_folder(value: Any) -> bool:
    """Whether this is the content of files by their names."""
    return isinstance(value, dict) and bool(value) and all(isinstance(content, bytes) for content in value.values())


def differences(left: dict[Any, bytes], right: dict[Any, bytes]) -> list[str]:
    """Which files differ, and the first lines of what they say otherwise."""
    said = ["two folders that should have the same bytes"]
    for name in sorted({*left, *right}, key=str):
        if name not in left or name not in right:
            said.append(f"{name} is only in the {'left' if name in left else 'right'} one")
        elif left[name] != right[name]:
            said.append(f"{name}: {len(left[name])} bytes, {len(right[name])} bytes")
            texts = [_as_text(str(name), folder[name]) for folder in (left, right)]
            lines = list(difflib.unified_diff(*texts, "left", "right", lineterm="", n=0))[2:]
            said += [f"    {line[:_MOST_LETTERS]}" for line in lines[:_MOST_LINES]]
    return said


def _as_text(name: str, content: bytes) -> list[str]:
    """What a file says, a line a row: of a Parquet table its rows, of a tar its members; nothing of what is no text."""
    if name.endswith(".tar"):
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            files = [(member.name, tar.extractfile(member)) for member in tar]
            return [f"{member}: {hashlib.sha256(file.read()).hexdigest()[:16]}" for member, file in files if file]
    if name.endswith(".parquet"):
        return [json.dumps(row, default=str) for row in pq.read_table(pa.BufferReader(content)).to_pylist()]
    try:
        return content.decode().splitlines()
    except UnicodeDecodeError:
        return []
