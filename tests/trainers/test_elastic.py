"""A run on a cluster that gains a node and loses one."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.recipe import Recipe
from tests.cluster_of_one import workers
from tests.trainers.ledgers import due, trained
from tests.trainers.tempest import Tempest
from tests.web import Serve
from trainers.running.capacity import Node
from trainers.running.preflight import check_elastic
from trainers.running.runs import RunFolder


@pytest.mark.slow
@pytest.mark.xdist_group("elastic")
def test_a_run_takes_in_a_node_that_comes_and_goes_on_without_one_that_goes(
    run_recipe: Callable[..., Recipe], tiles: Path, serve: Serve, tmp_path: Path
) -> None:
    """Storage is blocked while nodes come and go, so that the run cannot finish earlier, however fast the machine is."""
    training = {"cpus": 3, "threads": 1, "epochs": 24, "checkpoint_epochs": 0.5, "resize_seconds": 4}
    flowing = threading.Event()
    url = serve(tiles, ranges=False, flowing=flowing)
    shards = [f"{url}/{shard.name}" for shard in sorted(tiles.glob("*.tar"))]
    spec = run_recipe({"corpus": {"shards": shards}, "tracking": {"samples": True}}, workers=[1, 2], **training)
    path, log = tmp_path / "recipe.yaml", tmp_path / "driver.log"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    ledger = Path(RunFolder(spec).path("samples")) / "pretrain"
    tempest = Tempest(path, log, nodes=1)
    try:
        tempest.start()
        assert tempest.wait_for(6), log.read_text()
        flowing.clear()
        tempest.nodes.append(tempest.add_node())
        assert tempest.wait_until(lambda: len(workers("RayTrainWorker")) == 2), log.read_text()
        flowing.set()
        assert tempest.wait_until(lambda: len(list(ledger.glob("*-of-2-*"))) == 2), log.read_text()
        assert tempest.wait_for(tempest.steps() + 4), log.read_text()
        flowing.clear()
        tempest.kill("node", random.Random(0))
        flowing.set()
        assert tempest.end() == 0, log.read_text()
    finally:
        tempest.close()
    events = json.loads(Path(RunFolder(spec).path("pretrain.json")).read_text())["events"]
    assert [event["workers"] for event in events] == [2, 1], events
    assert "the cluster changed: there is room for 2 workers, not 1" in events[0]["what"]
    assert "was lost" in events[1]["what"]
    assert trained(spec) == due(spec)


def test_workers_that_would_take_the_data_actors_room_are_refused_with_the_arithmetic(run_recipe: Callable[..., Recipe]) -> None:
    spec = run_recipe(workers=[1, 4])
    check_elastic(spec, [Node(4.0), Node(2.0)])
    check_elastic(run_recipe(workers=[1, 2]), [Node(4.0)])
    with pytest.raises(
        UserError, match=r"4 workers, as many as the nodes hold now, leave 0 CPUs to 1 actors x 0\.5 \+ 1 for Ray"
    ):
        check_elastic(spec, [Node(4.0)])
