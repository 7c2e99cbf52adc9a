"""Small packages, laid out in a folder as an installer leaves them, that are found beside ours for the length of a test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from pipeline.tasks import registry

Installer = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installer]:
    """Installs a package of one module: its name, the module's text, and its entry points by group and name."""
    before = set(sys.modules)

    def into_a_folder(name: str, text: str, points: Mapping[str, Mapping[str, str]]) -> None:
        folder = tmp_path / name
        about = folder / f"{name}-1.0.dist-info"
        about.mkdir(parents=True)
        (folder / f"{name}.py").write_text(text)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [line for group, own in points.items() for line in (f"[{group}]", *(f"{key} = {own[key]}" for key in own))]
        (about / "entry_points.txt").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(folder)
        _forget()

    yield into_a_folder
    monkeypatch.undo()
    _forget()
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def _forget() -> None:
    """Let the registries look for entry points anew."""
    registry.cache_clear()
    for module, name in (("trainers.objectives", "registry"), ("trainers.networks.backbones", "_added")):
        if module in sys.modules:
            getattr(sys.modules[module], name).cache_clear()
