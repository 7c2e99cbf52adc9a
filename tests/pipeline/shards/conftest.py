"""Tars made by hand."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

MakeTar = Callable[..., Path]


@pytest.fixture(scope="session")
def make_tar() -> MakeTar:
    """`make_tar(path, [(name, bytes), ...], format=tarfile.PAX_FORMAT)` writes a tar and returns its path."""

    def make(path: Path, members: Iterable[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", format=format) as archive:
            for name, body in members:
                info = tarfile.TarInfo(name)
                info.size = len(body)
                archive.addfile(info, io.BytesIO(body))
        return path

    return make
