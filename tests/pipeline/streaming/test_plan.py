"""Ray Data's stream of units: the pairs of `pairs()`, whatever the batch, the actors, the ranks and the placement."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray

from pipeline import dataset, pairs
from pipeline.errors import UserError
from pipeline.ordering.order import Geometry, Schedule
from pipeline.recipe import Recipe
from pipeline.rendering.engine import settled
from pipeline.rendering.renderer import Columns
from pipeline.rendering.units import UnitSource
from pipeline.shards.opening import open_corpus
from pipeline.streaming.plan import steps, units
from tests.pipeline.made_images import good
from tests.pipeline.shards.conftest import make_tar
from tests.tiles import FOUR_TASKS

__all__ = ["make_tar"]

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
    source = UnitSource(settled(recipe), corpus, Schedule(corpus.counts, geometry, recipe.seed, 1, tail="pad"))

    def consume(rank: int, split: Any) -> list[tuple[int, Columns]]:
        return list(steps([source], split, rank, world))

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(consume, range(world), units([source], crops=True).streaming_split(world, equal=False)))


VIEWS = {"simclr": {"small_views": 1, "small_size": 16}, "second": {"task": "byol"}}


@pytest.mark.parametrize(
    ("tasks", "render", "actors", "world", "batch"),
    [
        pytest.param(FOUR_TASKS, "workers", 3, 2, 24, marks=pytest.mark.slow),
        (FOUR_TASKS | VIEWS, "workers", 2, 2, 24),
        pytest.param(FOUR_TASKS | VIEWS, "trainer", 2, 4, 8, marks=pytest.mark.slow),
    ],
)
def test_a_pair_is_the_same_whatever_batch_actors_ranks_and_placement(
    run_recipe: Callable[..., Recipe], tasks: dict[str, Any], render: str, actors: int, world: int, batch: int
) -> None:
    expected = by_sample(pairs(run_recipe({"tasks": tasks})))
    spec = run_recipe({"tasks": tasks, "placement": {"render": render, "actors": actors, "cpus": 0.5}}, batch=batch)
    ranks = over_ray(spec, world)
    assert len(expected) == 72
    assert by_sample(columns for rank in ranks for _, columns in rank) == expected


@pytest.mark.slow
def test_ranks_together_hold_the_global_batches_of_the_schedule(run_recipe: Callable[..., Recipe]) -> None:
    alone = over_ray(run_recipe(), 1)[0]
    together = over_ray(run_recipe({"placement": {"actors": 2, "cpus": 0.5}}), 4)
    for step, columns in alone:
        shares = [dict(rank)[step]["id"] for rank in together]
        assert all(len(share) == 4 for share in shares)
        assert sorted(np.concatenate(shares).tolist()) == sorted(columns["id"].tolist())


@pytest.mark.slow
@pytest.mark.skipif(psutil.virtual_memory().available < 10 * 2**30, reason="needs 10 GiB of memory")
def test_units_near_the_limit_arrive_whole_and_in_order(run_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """Two units of 1.44 GiB of encoded bytes: more than Ray's store holds here, and as much as the preflight lets pass."""
    size = 23 * 2**20
    with (tmp_path / "large.tar").open("wb") as shard:  # sparse: its bodies take no room on disk
        for n in range(64):
            info = tarfile.TarInfo(f"{n:02d}.jpg")
            info.size = size
            shard.write(info.tobuf() + bytes([n]))
            shard.seek(size - 1, io.SEEK_CUR)
        shard.write(bytes(2 * tarfile.BLOCKSIZE))
    sections = {"corpus": {"shards": str(tmp_path / "large.tar")}, "placement": {"render": "trainer"}}
    corpus, geometry = open_corpus(sections["corpus"]["shards"]), Geometry(64, lanes=8, groups=1, window=1)
    geometry.check_unit(size)
    with pytest.raises(UserError, match=r"may be 1\.5 GiB"):
        geometry.check_unit(1.05 * size)
    source = UnitSource(settled(run_recipe(sections, batch=64)), corpus, Schedule(corpus.counts, geometry, 0, 2))
    blocks = units([source]).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    found = [(table["unit"].unique().to_pylist(), table["key"].to_pylist(), _firsts(table)) for table in blocks]
    due = [source.schedule.unit(number)[1].rows.tolist() for number in range(2)]
    assert due[0] != due[1]
    assert found == [([number], [f"{n:02d}" for n in rows], rows) for number, rows in enumerate(due)]


def test_actors_give_way_to_the_network_and_stop_when_some_windows_wait_for_it(
    run_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Else they render all that the object store holds, and compute beside the network for as long."""
    spec = settled(run_recipe(batch=8))
    corpus, geometry = open_corpus(spec.corpus.shards), Geometry(8, lanes=8, groups=2, window=2)
    source = UnitSource(spec, corpus, Schedule(corpus.counts, geometry, 0, epochs=400))
    rendered = tmp_path / "rendered"
    rendered.touch()

    def note(process: str, stage: str, unit: int) -> None:
        if stage == "render":
            with rendered.open("a") as file:
                file.write(f"{os.nice(0)}\n")

    def count() -> int:
        return len(rendered.read_text().splitlines())

    arriving = iter(units([source], note, crops=True).iter_batches(batch_size=None, prefetch_batches=0))
    for _ in range(3):
        next(arriving)
    seen, still = count(), 0
    while still < 20 and seen < source.schedule.units(0):  # until nothing happens for a while
        time.sleep(0.1)
        still = still + 1 if count() == seen else 0
        seen = count()
    (actor,) = set(rendered.read_text().split())
    assert int(actor) > ray.get(ray.remote(lambda: os.nice(0)).remote())
    assert seen < 100, "of the 4000 units, those of two windows and what an actor has begun, twice"
    for _ in range(200):
        next(arriving)
    assert count() > seen, "it goes on when the trainer does"


def test_a_long_run_of_small_units_goes_on(run_recipe: Callable[..., Recipe]) -> None:
    """The numbers of its units, one block, are more bytes than the units that may wait."""
    spec = settled(run_recipe({"placement": {"actors": 2, "cpus": 0.5}}, batch=8))
    corpus, geometry = open_corpus(spec.corpus.shards), Geometry(8, lanes=8, groups=2, window=1)
    source = UnitSource(spec, corpus, Schedule(corpus.counts, geometry, 0, epochs=40_000))
    assert source.schedule.units(0) > 500_000
    arriving = iter(units([source], crops=True).iter_batches(batch_size=None, prefetch_batches=0))
    assert [next(arriving)["unit"][0] for _ in range(100)] == list(range(100))


def _firsts(table: pa.Table) -> list[int]:
    """The first byte of each sample's file."""
    return [value.as_buffer()[0] for chunk in table["encoded"].chunks for value in chunk]


@pytest.fixture
def damaged(run_recipe: Callable[..., Recipe], tmp_path: Path, make_tar: Callable[..., Path]) -> Callable[..., Recipe]:
    """Recipes on two shards of 23 samples, two of which are bad."""
    for shard in range(2):
        members = [(f"{n:02d}.jpg", b"damaged" if n in (3, 8) else good()["jpeg"]) for n in range(shard, 23, 2)]
        make_tar(tmp_path / "in" / f"{shard}.tar", members)

    def make(**sections: Any) -> Recipe:
        return run_recipe({"corpus": {"shards": str(tmp_path / "in")}, "tasks": FOUR_TASKS, **sections}, batch=8)

    return make


def test_an_epoch_of_pairs_is_a_ray_dataset_that_feeds_what_others_build_on_it(damaged: Callable[..., Recipe]) -> None:
    parts = list(pairs(damaged(), epoch=1))
    expected = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    assert len(expected["id"]) == 21
    rows = dataset(damaged(placement={"actors": 2, "cpus": 0.5}), epoch=1).materialize()
    found = rows.take_batch(100)
    assert list(found) == list(expected)
    for name, column in expected.items():
        assert found[name].dtype == column.dtype
        np.testing.assert_array_equal(found[name], column, err_msg=name)
    tensors = list(rows.iter_torch_batches(batch_size=8))
    assert {name: tuple(tensor.shape[1:]) for name, tensor in tensors[0].items()} == {
        name: column.shape[1:] for name, column in expected.items()
    }
    assert [number for part in tensors for number in part["id"].tolist()] == expected["id"].tolist()
    for frame in (rows.to_pandas(), next(iter(rows.iter_batches(batch_size=100, batch_format="pandas")))):
        assert list(frame) == list(expected)
        for name, column in expected.items():
            values = np.stack(frame[name]) if column.ndim > 1 else frame[name].to_numpy(column.dtype)
            np.testing.assert_array_equal(values, column, err_msg=name)
    with ThreadPoolExecutor(2) as pool:  # as two workers of Ray Train
        shards = list(pool.map(lambda split: list(split.iter_torch_batches(batch_size=4)), rows.streaming_split(2, equal=False)))
    assert sorted(number for shard in shards for part in shard for number in part["id"].tolist()) == sorted(expected["id"])


def test_a_dataset_with_too_many_bad_samples_says_so_to_its_reader(damaged: Callable[..., Recipe]) -> None:
    import ray

    with pytest.raises(
        ray.exceptions.RayError, match=r"(?s)2 of \d+ samples .*over failures\.budget of 1.*not a decodable image"
    ):
        dataset(damaged(failures={"budget": 1})).materialize()
