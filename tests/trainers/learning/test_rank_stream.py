"""The stage that holds training up is named, and a slow stage is told apart from a stalled one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import RunError
from pipeline.ordering.order import Geometry, Schedule
from pipeline.recipe import Recipe, parse_recipe
from pipeline.recipe.execution import Placement
from pipeline.rendering.renderer import Columns
from pipeline.rendering.tasks_on_crops import CropTaskRenderer
from pipeline.rendering.units import STAGES, UnitSource, seconds_column
from pipeline.shards.opening import open_corpus
from trainers.learning.rank_stream import RankStream, cause, more_seconds
from trainers.running.run_log import RunLog, open_run_log

WORKERS, TRAINER = Placement(actors=2), Placement(render="trainer", actors=2)


@pytest.mark.parametrize(
    ("place", "seconds", "expected"),
    [
        (WORKERS, {"read": 2, "check": 1, "render": 16}, "render"),
        (WORKERS, {"read": 15, "check": 1, "render": 3}, "read"),
        (WORKERS, {"read": 2, "check": 1, "render": 3}, "transfer"),  # two actors for ten seconds, busy for six of twenty
        (TRAINER, {"read": 2, "check": 1, "render": 38}, "render"),  # four ranks for ten seconds
        (TRAINER, {"read": 19, "check": 1, "render": 22}, "read"),
        (TRAINER, {"read": 2, "check": 1, "render": 3}, "transfer"),
        (WORKERS, {"read": 2, "check": 1, "render": 3, "tasks": 25}, "tasks"),  # made by four ranks, not by the actors
        (WORKERS, {"read": 2, "check": 1, "render": 16, "tasks": 25}, "render"),  # actors 19 of 20 seconds, ranks 25 of 40
        (WORKERS, {"read": 2, "check": 1, "render": 3, "tasks": 17}, "transfer"),  # neither is busy, though their sum is 23
    ],
)
def test_the_cause_of_waiting_is_the_stage_whose_processes_are_busy(
    place: Placement, seconds: dict[str, float], expected: str
) -> None:
    assert cause({"tasks": 0, **seconds, "transfer": 30, "wait": 9}, 10, place, world=4) == expected


def test_the_time_of_tasks_on_crops_is_counted_once_and_as_that_of_no_actor() -> None:
    recipe = parse_recipe({"name": "a", "seed": 5, "corpus": {"shards": "x"}, "engine": "cpu", "tasks": {"rotation": {}}})
    n, finish = 64, CropTaskRenderer(recipe)

    def made() -> Iterator[tuple[int, Columns]]:
        for step in range(3):
            spent = {"read": (1.0, 1.0), "render": (2.0, 2.0)}  # by actors
            columns = {"id": np.arange(n, dtype=np.uint64), "weight": np.ones(n), "image": np.zeros((n, 224, 224, 3), np.uint8)}
            columns["seconds"] = seconds_column(n, spent)
            finish(columns, 0)
            yield step, columns

    feed, started = RankStream([], 0, 1), time.perf_counter()  # type: ignore[arg-type]
    batches = list(feed._timed(made()))
    elapsed = time.perf_counter() - started
    spent = dict(zip(STAGES, sum(columns["seconds"].sum(axis=0) for _, columns in batches)))
    assert spent["read"] == pytest.approx(3)
    assert spent["render"] == pytest.approx(6)
    assert spent["tasks"] > 0
    assert feed.seconds["transfer"] > 0
    assert feed.seconds["transfer"] + spent["tasks"] <= elapsed * 1.001  # of float32


@pytest.mark.parametrize(
    ("waited", "still", "more"),
    [(20, 20, 0), (26, 31, 0), (20, 6, 14), (59, 19, 1), (60, 6, 0)],
)
def test_a_batch_is_waited_for_while_its_stages_go_on_but_not_for_ever(waited: float, still: float, more: float) -> None:
    assert more_seconds(20, waited, still) == more


@pytest.mark.usefixtures("local_ray")
def test_what_stands_still_is_named_with_its_shard(run_recipe: Callable[..., Recipe], tiles: Path) -> None:
    """In `tests/trainers/test_exact.py` a server stops to answer."""
    recipe = run_recipe({"failures": {"stall_seconds": 20}})
    corpus = open_corpus(str(tiles))
    source = UnitSource(recipe, corpus, Schedule(corpus.counts, Geometry(16, lanes=8, groups=4, window=2), recipe.seed, 2))
    run_log = open_run_log()
    run_log.begin.remote(0, 1, 1)
    run_log.report.remote("actor 1", "read", 1)
    feed = RankStream([source], 0, 1, run_log)
    assert 0 < feed._late([source], 25) <= 20  # it began only now
    words = (
        r"no batch has come to rank 0 for 60 s \(failures\.stall_seconds: 20\): "
        r"read has stood still for \d+ s on actor 1, at .*tar"
    )
    with pytest.raises(RunError, match=words):
        feed._late([source], 60)


def test_the_run_log_knows_which_actor_has_been_at_what_for_longest() -> None:
    run_log = RunLog()
    run_log.begin(0, 1, 2)
    run_log.report("a", "render", 7)
    run_log.report("b", "read", 8)
    run_log.report("c", "idle", -1)
    assert [entry[:3] for entry in run_log.active()] == [("a", "render", 7), ("b", "read", 8)]
    run_log.report("c", "read", 7)  # in place of a, which died
    assert [entry[:3] for entry in run_log.active()] == [("b", "read", 8), ("c", "read", 7)]


def test_what_befalls_a_run_is_said_with_the_step_it_goes_on_from() -> None:
    run_log = RunLog()
    run_log.begin(0, 2, 1)
    run_log.worker_lost("worker 1 was lost (the node died)")
    run_log.begin(40, 1, 1)
    run_log.begin(60, 2, 1)
    assert [event["what"] for event in run_log.events()] == [
        "worker 1 was lost (the node died); training goes on from step 40 with 1 worker",
        "the cluster changed: there is room for 2 workers, not 1; training goes on from step 60 with 2 workers",
    ]
    assert run_log.events(1)[0]["workers"] == 2
