"""What tests of the command line share: a way to call it, and a recipe on real shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from cluster.cli import app

Call = Callable[..., Result]


@pytest.fixture
def call() -> Call:
    """`call("inspect", "shards", ...)`: the result of the command, with `stdout`, `stderr` and `exit_code`."""
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def refused(call: Call) -> Callable[..., str]:
    """`refused(2, "pack", ...)`: the error message, after checking the exit code and that there is no traceback beside it."""

    def run(code: int, *words: Any) -> str:
        result = call(*words)
        assert result.exit_code == code, (result.exit_code, result.output, result.exception)
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, result.stderr
        assert "Traceback" not in result.output
        return result.stderr[result.stderr.index("error: ") :].removeprefix("error: ")

    return run


@pytest.fixture
def recipe_file(tmp_path: Path, tiles: Path) -> Path:
    """A recipe of two tasks on the tiles, as a user's file."""
    document = {
        "name": "mine",
        "seed": 3,
        "corpus": {"shards": str(tiles)},
        "image": {"size": 32},
        "tasks": {"rotation": {}, "occlusion": {}},
        "training": {"batch": 16, "epochs": 1, "backbone": {"name": "shufflenet_v2_x0_5"}},
        "storage": {"runs": str(tmp_path / "runs")},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path
