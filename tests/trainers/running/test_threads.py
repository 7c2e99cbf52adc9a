"""A network computes on the available cores, unless the recipe or the environment says otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.recipe import Recipe, parse_recipe
from trainers.running import threads
from trainers.running.threads import network_threads, thread_advice

BASE = {"name": "a", "seed": 0, "corpus": {"shards": "x"}}


def recipe(placement: dict[str, Any] | None = None, **training: Any) -> Recipe:
    return parse_recipe({**BASE, "placement": placement or {}, "training": training})


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`machine(4)`: the rest of the test runs on so many cores, and no Ray is named."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def of(cores: int) -> None:
        monkeypatch.setattr(threads, "cores", lambda: cores)
        monkeypatch.setattr(threads, "local_cpus", lambda: cores + 1)

    return of


@pytest.mark.parametrize(
    ("cores", "placement", "training", "expected"),
    [
        (1, {}, {}, 1),
        (2, {}, {}, 2),
        (2, {"cpus": 0.5}, {}, 2),
        (8, {}, {}, 8),
        (8, {"actors": 4}, {}, 5),
        (8, {"actors": 2, "cpus": 2}, {}, 5),
        (8, {"actors": 20}, {}, 1),
        (8, {"actors": 2}, {"workers": 3}, 2),
        (8, {}, {"workers": [1, 4]}, 2),
        (8, {}, {"workers": 0}, 8),
        (8, {}, {"threads": 3}, 3),
        (8, {}, {"cpus": 1}, 1),
        (8, {}, {"cpus": 2.5}, 3),
    ],
)
def test_threads_are_what_the_data_actors_leave_unless_the_recipe_says(
    machine: Callable[[int], None], cores: int, placement: dict[str, Any], training: dict[str, Any], expected: int
) -> None:
    machine(cores)
    assert network_threads(recipe(placement, **training)) == expected


def test_on_a_cluster_and_where_the_environment_says_it_is_not_the_machine(
    machine: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(8)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert network_threads(recipe()) == 3
    assert network_threads(recipe(threads=5)) == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")  # one number a level
    assert network_threads(recipe()) == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert network_threads(recipe()) == 1


def test_cores_that_a_network_left_idle_are_said(machine: Callable[[int], None]) -> None:
    machine(8)
    busy, waiting = {"wait": 0.5, "total": 10.0}, {"wait": 2.0, "total": 10.0}
    assert (
        thread_advice(recipe(threads=2), busy) == "training computed for 95% of its time, on 2 of 8 cores: try training.threads=8"
    )
    assert thread_advice(recipe(threads=1, workers=2), busy) == (
        "training computed for 95% of its time, on 2 of 8 cores: try training.threads=4"
    )
    assert thread_advice(recipe(threads=2), waiting) is None
    assert thread_advice(recipe(), busy) is None
    assert thread_advice(recipe(threads=2, gpus=1), busy) is None
    assert thread_advice(recipe(threads=2), {"wait": 0.0, "total": 0.0}) is None
