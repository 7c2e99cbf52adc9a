"""A render that is killed again and again leaves, byte for byte, what an undisturbed one leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.materialize.run import render
from pipeline.materialize.verify import verify
from pipeline.recipe import load_recipe
from tests.pipeline.materialize.storm import ONE_OF_EACH, VICTIMS, prepare, weather


@pytest.mark.xdist_group("kills")
@pytest.mark.parametrize(
    ("images", "kills", "bad", "nodes"),
    [(480, ONE_OF_EACH, 1, 1), pytest.param(2400, VICTIMS, 5, 2, marks=pytest.mark.slow)],
    ids=["three", "twenty"],
)
def test_kills_of_actors_nodes_and_driver_change_no_byte(
    tmp_path: Path, tree: Callable[[Path], dict[str, bytes]], images: int, kills: list[str], bad: int, nodes: int
) -> None:
    """One seed; `benchmarks/kill_storm.py` tries many."""
    recipe = prepare(tmp_path, images)
    render(load_recipe(recipe), str(tmp_path / "calm"), here=True)
    outcome = weather(["render", str(recipe)], tmp_path, 11, kills, nodes=nodes)
    assert outcome.surprises == [], (tmp_path / "driver.log").read_text()
    assert outcome.killed == Counter(kills)
    calm = tree(tmp_path / "calm")
    for folder in outcome.folders:
        assert tree(folder) == calm
    verdict = verify(str(outcome.folders[0]))
    assert (verdict.problems, verdict.pairs, verdict.quarantined) == ([], 2 * (images - bad), bad)
