"""Ray Data's stream of units: the pairs of `pairs()`, whatever the batch, the actors, the ranks and the placement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from pipeline import dataset, pairs
from pipeline.engines import settled
from pipeline.order import Geometry, Schedule
from pipeline.recipe import Recipe
from pipeline.render import Columns
from pipeline.shards.opening import open_corpus
from pipeline.stream import steps, units
from pipeline.units import Source
from tests.tiles import FOUR_TASKS

pytestmark = pytest.mark.usefixtures("local_ray")


def by_sample(parts: Iterator[Columns]) -> dict[int, dict[str, bytes]]:
    """Every pixel and label of each sample, by its id."""
    found: dict[int, dict[str, bytes]] = {}
    for columns in parts:
        names = [name for name in columns if name not in ("unit", "seconds", "failure")]
        for row, sample in enumerate(columns["id"]):
            if columns["weight"][row]:
                assert int(sample) not in found
                found[int(sample)] = {name: np.ascontiguousarray(columns[name][row]).tobytes() for name in names}
    return found


def over_ray(recipe: Recipe, world: int) -> list[list[tuple[int, Columns]]]:
    """What each of `world` ranks receives in one epoch."""
    corpus = open_corpus(recipe.corpus.shards)
    geometry = Geometry(recipe.training.batch, lanes=8, groups=4, window=2)
    source = Source(settled(recipe), corpus, Schedule(corpus.counts, geometry, recipe.seed, 1, tail="pad"))

    def consume(rank: int, split: Any) -> list[tuple[int, Columns]]:
        return list(steps(source, split, rank, world))

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(consume, range(world), units(source, crops=True).streaming_split(world, equal=False)))


@pytest.mark.parametrize(
    ("render", "actors", "world", "batch"),
    [("workers", 3, 2, 24), ("trainer", 2, 4, 8)],
)
def test_a_pair_is_the_same_whatever_batch_actors_ranks_and_placement(
    run_recipe: Callable[..., Recipe], render: str, actors: int, world: int, batch: int
) -> None:
    expected = by_sample(pairs(run_recipe({"tasks": FOUR_TASKS})))
    spec = run_recipe({"tasks": FOUR_TASKS, "placement": {"render": render, "actors": actors, "cpus": 0.5}}, batch=batch)
    ranks = over_ray(spec, world)
    assert len(expected) == 72
    assert by_sample(columns for rank in ranks for _, columns in rank) == expected


def test_ranks_together_hold_the_global_batches_of_the_schedule(run_recipe: Callable[..., Recipe]) -> None:
    alone = over_ray(run_recipe(), 1)[0]
    together = over_ray(run_recipe({"placement": {"actors": 2, "cpus": 0.5}}), 4)
    for step, columns in alone:
        shares = [dict(rank)[step]["id"] for rank in together]
        assert all(len(share) == 4 for share in shares)
        assert sorted(np.concatenate(shares).tolist()) == sorted(columns["id"].tolist())


def test_an_epoch_of_pairs_is_a_ray_dataset_for_a_users_own_pipeline(run_recipe: Callable[..., Recipe]) -> None:
    rows = dataset(run_recipe(), epoch=1)
    found = by_sample(rows.iter_batches(batch_size=10, batch_format="numpy"))
    assert found == by_sample(pairs(run_recipe(), epoch=1))
