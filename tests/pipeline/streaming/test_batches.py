"""From units back to steps: any number of ranks share the global batches evenly, and a unit out of place is noticed."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from pipeline.ordering.order import Geometry, Schedule
from pipeline.rendering.renderer import Columns
from pipeline.streaming.batches import ahead, batches

GEOMETRY = Geometry(batch=16, lanes=8, groups=4, window=3)


def schedule() -> Schedule:
    return Schedule(np.array([40, 7, 61]), GEOMETRY, seed=2, epochs=2)


def units(plan: Schedule, step: int, rank: int, world: int) -> Iterator[Columns]:
    """Units as an actor would make them, holding the place of each sample in the corpus only."""
    for number in range(rank, plan.units(step), world):
        _, rows = plan.unit(number, step)
        yield {"unit": np.full(len(rows), number), "place": rows.shards * 1000 + rows.rows}


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("step", [0, 1, 5, 11])
def test_ranks_share_each_global_batch_evenly(world: int, step: int) -> None:
    plan = schedule()
    ranks = [list(batches(plan, step, rank, world, units(plan, step, rank, world))) for rank in range(world)]
    for at, now in enumerate(range(step, plan.steps)):
        assert {rank[at][0] for rank in ranks} == {now}
        assert {len(rank[at][1]["place"]) for rank in ranks} == {16 // world}
        epoch, within = divmod(now, plan.steps_per_epoch)
        rows = plan.plan(epoch).batch(within)
        together = np.concatenate([rank[at][1]["place"] for rank in ranks])
        assert sorted(together) == sorted(rows.shards * 1000 + rows.rows)


def test_a_unit_that_is_not_due_is_an_error_that_names_both() -> None:
    plan = schedule()
    swapped = list(units(plan, 0, 0, 1))
    swapped[1], swapped[2] = swapped[2], swapped[1]
    with pytest.raises(RuntimeError, match="unit 1 with 12 rows was due, unit 2 with 12 rows came"):
        list(batches(plan, 0, 0, 1, swapped))


def test_a_missing_unit_is_an_error() -> None:
    plan = schedule()
    with pytest.raises(RuntimeError, match="was due, nothing came"):
        list(batches(plan, 0, 0, 1, list(units(plan, 0, 0, 1))[:-1]))


def test_a_short_unit_is_an_error() -> None:
    plan = schedule()
    made = list(units(plan, 0, 0, 1))
    made[0] = {name: column[:-1] for name, column in made[0].items()}
    with pytest.raises(RuntimeError, match="unit 0 with 12 rows was due, unit 0 with 11 rows came"):
        list(batches(plan, 0, 0, 1, made))


def test_running_ahead_changes_neither_items_nor_their_order() -> None:
    assert list(ahead(iter(range(100)), 3)) == list(range(100))


def test_an_error_ahead_comes_out_after_the_items_before_it() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise KeyError("the reader's own error")

    items = ahead(failing(), 2)
    assert next(items) == 1
    with pytest.raises(KeyError, match="own error"):
        next(items)


def test_an_item_is_waited_for_as_long_as_the_consumer_says() -> None:
    made = threading.Event()

    def slow() -> Iterator[int]:
        made.wait()
        yield 1

    def time_left(waited: float) -> float:
        asked.append(waited)
        if len(asked) == 3:
            made.set()
        return 60.0 if made.is_set() else 0.01

    asked: list[float] = []
    assert list(ahead(slow(), 2, time_left)) == [1]
    assert asked[0] < asked[1] < asked[2]


def test_and_no_longer() -> None:
    never = threading.Event()

    def time_left(waited: float) -> float:
        if waited > 0.02:
            raise TimeoutError("in vain")
        return 0.01

    with pytest.raises(TimeoutError, match="in vain"):
        next(ahead(iter(never.wait, None), 2, time_left))
    never.set()


def test_running_ahead_stops_at_its_depth_and_with_its_consumer() -> None:
    made = []

    def endless() -> Iterator[int]:
        while True:
            made.append(len(made))
            yield made[-1]

    items = ahead(endless(), 2)
    assert [next(items), next(items)] == [0, 1]
    items.close()
    assert len(made) <= 6
