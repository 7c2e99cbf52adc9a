"""A run on a cluster that loses a node."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from tests.trainers.ledgers import due, trained
from tests.trainers.tempest import Tempest
from trainers.capacity import Node
from trainers.preflight import check_room
from trainers.runs import RunFolder


def test_a_run_that_loses_a_node_goes_on_with_the_workers_that_are_left(
    run_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    spec = run_recipe({"tracking": {"samples": True}}, workers=[1, 2], cpus=3, threads=1, epochs=20, checkpoint_epochs=1)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    tempest = Tempest(path, tmp_path / "driver.log")
    try:
        tempest.start()
        assert tempest.wait_for(12), (tmp_path / "driver.log").read_text()
        tempest.kill("node", random.Random(0))
        assert tempest.end() == 0, (tmp_path / "driver.log").read_text()
    finally:
        tempest.close()
    ledger = Path(RunFolder(spec).path("samples")) / "pretrain"
    assert {file.stem.partition("-of-")[2][0] for file in ledger.glob("*.jsonl")} == {"2", "1"}
    assert trained(spec) == due(spec)
    events = json.loads(Path(RunFolder(spec).path("pretrain.json")).read_text())["events"]
    assert [event["workers"] for event in events if "was lost" in event["what"]] == [1]


def test_workers_that_would_take_the_data_actors_room_are_refused_with_the_arithmetic(run_recipe: Callable[..., Recipe]) -> None:
    spec = run_recipe(workers=[1, 4])
    check_room(spec, [Node(4.0), Node(2.0)])
    check_room(run_recipe(workers=[1, 2]), [Node(4.0)])
    with pytest.raises(
        UserError, match=r"4 workers, as many as the nodes hold now, leave 0 CPUs to 1 actors x 0\.5 \+ 1 for Ray"
    ):
        check_room(spec, [Node(4.0)])
