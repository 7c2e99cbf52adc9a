"""`pseudolabel bench`: makes its table and verdict from a real stream and a real network, in both placements."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("placement", [pytest.param("workers", marks=pytest.mark.slow), "trainer"])
def test_every_stage_is_measured_and_one_is_named(call: Callable[..., Result], recipe_file: Path, placement: str) -> None:
    changes = {"placement.render": placement, "training.epochs": 50, "placement.cpus": 0.5, "training.order.window": 1}
    words = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    result = call("bench", recipe_file, "--seconds", "1", "--json", *words)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    names = [stage["name"] for stage in found["stages"]]
    assert names == ["read", "check", "render", *(["tasks"] if placement == "workers" else []), "receive", "step"]
    for stage in found["stages"]:
        assert stage["images"] > 0, stage
        assert stage["busy"] > 0, stage
        assert stage["spread"] == sorted(stage["spread"]), stage
    read, _, render, *_, receive, step = found["stages"]
    assert render["cpu"] > 0
    assert read["bytes"] > 0
    crop = 3 * 32 * 32
    assert receive["bytes"] > 3 * crop  # the crop, two inputs, a mask
    assert render["bytes"] == (crop if placement == "workers" else receive["bytes"])
    assert step["images"] % 16 == 0
    assert min(found["made"], found["arrived"], found["learned"], found["first"]) > 0
    assert "limit" in found["verdict"]
