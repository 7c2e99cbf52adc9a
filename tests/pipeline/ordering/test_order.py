"""The order of training: every sample once an epoch, and a function of counts, recipe and seed alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.ordering.order import MOST_UNIT_BYTES, EpochOrder, Geometry, Schedule, UnitRows
from pipeline.recipe.training import OrderSection

COUNTS = st.lists(st.sampled_from([0, 1, 7, 13, 100]), min_size=1, max_size=9)
GEOMETRIES = st.sampled_from([Geometry(8, 8, 4, 3), Geometry(12, 6, 2, 1), Geometry(16, 4, 4, 16), Geometry(6, 1, 1, 2)])


def samples(rows: UnitRows) -> list[tuple[int, int]]:
    return list(zip(rows.shards.tolist(), rows.rows.tolist()))


def epoch_of(plan: EpochOrder) -> list[tuple[int, int]]:
    return [sample for step in range(plan.steps) for sample in samples(plan.batch(step))]


def everything(counts: list[int]) -> set[tuple[int, int]]:
    return {(shard, row) for shard, count in enumerate(counts) for row in range(count)}


@given(COUNTS, GEOMETRIES, st.integers(0, 3))
def test_drop_takes_every_sample_at_most_once_and_leaves_out_less_than_a_batch(
    counts: list[int], geometry: Geometry, epoch: int
) -> None:
    seen = epoch_of(EpochOrder(np.array(counts), geometry, seed=5, epoch=epoch))
    assert len(seen) == sum(counts) - sum(counts) % geometry.batch
    assert len(set(seen)) == len(seen)
    assert set(seen) <= everything(counts)


@given(COUNTS, GEOMETRIES)
def test_wrap_takes_every_sample_and_repeats_less_than_a_batch(counts: list[int], geometry: Geometry) -> None:
    assume(sum(counts) >= geometry.batch)
    seen = epoch_of(EpochOrder(np.array(counts), geometry, seed=5, epoch=0, tail="wrap"))
    assert set(seen) == everything(counts)
    assert len(seen) - len(set(seen)) == -sum(counts) % geometry.batch


@given(COUNTS, GEOMETRIES, st.booleans())
def test_pad_takes_every_sample_once_and_leaves_the_other_places_empty(
    counts: list[int], geometry: Geometry, shuffle: bool
) -> None:
    assume(sum(counts))
    seen = epoch_of(EpochOrder(np.array(counts), geometry, seed=5, epoch=0, tail="pad", shuffle=shuffle))
    filled = [sample for sample in seen if sample[0] >= 0]
    assert sorted(filled) == sorted(everything(counts))
    assert len(seen) - len(filled) == -sum(counts) % geometry.batch


@given(COUNTS, GEOMETRIES, st.data())
def test_units_from_any_step_on_make_up_the_rest_of_the_run(counts: list[int], geometry: Geometry, data: st.DataObject) -> None:
    assume(sum(counts) >= geometry.batch)
    schedule = Schedule(np.array(counts), geometry, seed=1, epochs=2)
    step = data.draw(st.integers(0, schedule.steps))
    found = []
    for window, steps in enumerate(schedule.windows(step)):
        made = [schedule.unit(window * geometry.groups + group, step) for group in range(geometry.groups)]
        per_step = geometry.batch // geometry.groups
        assert {len(rows) for _, rows in made} == {len(steps) * per_step}
        for i, now in enumerate(steps):
            rows = [sample for _, unit in made for sample in samples(unit)[i * per_step : (i + 1) * per_step]]
            epoch, within = divmod(now, schedule.steps_per_epoch)
            assert {number for number, _ in made} == {epoch}
            assert rows == samples(schedule.plan(epoch).batch(within))
            found.append(now)
    assert found == list(range(step, schedule.steps))
    assert schedule.units(step) == geometry.groups * len(list(schedule.windows(step)))


def test_groups_change_what_is_sent_together_and_not_the_order() -> None:
    plans = [EpochOrder(np.array([40, 3, 77]), Geometry(16, 8, groups, 2), seed=4, epoch=1) for groups in (1, 2, 4, 8)]
    for step in range(plans[0].steps):
        batches = [plan.batch(step) for plan in plans]
        for batch in batches[1:]:
            np.testing.assert_array_equal(batch.shards, batches[0].shards)
            np.testing.assert_array_equal(batch.rows, batches[0].rows)


@pytest.mark.parametrize("sent", [100, 150_000, 700_000])
def test_groups_are_as_few_as_the_size_of_a_unit_allows_and_nothing_else_follows(sent: int) -> None:
    general, own = Geometry.of(OrderSection(), 256, 700_000), Geometry.of(OrderSection(), 256, 700_000, sent)
    assert (own.batch, own.lanes, own.window) == (general.batch, general.lanes, general.window)
    assert 2 <= own.groups <= general.groups
    if own.groups < 8:
        assert own.window * own.batch // own.groups * sent <= 40 * 2**20
    named = OrderSection(groups=4)
    assert Geometry.of(named, 256, 700_000, sent) == Geometry.of(named, 256, 700_000)


@given(st.sampled_from([16, 48, 64, 256, 1024, 4096]), st.integers(100, 200_000_000))
def test_units_that_would_be_too_large_for_a_block_are_made_smaller_or_refused(batch: int, sent: int) -> None:
    geometry, plain = Geometry.of(OrderSection(), batch, 700_000, sent), Geometry.of(OrderSection(), batch, 700_000, 100)
    assert replace(geometry, groups=plain.groups) == plain, "the order is the same"
    if geometry.window * geometry.unit_rows * sent <= MOST_UNIT_BYTES:
        geometry.check_unit(sent)
    else:
        assert geometry.groups == geometry.lanes, "there is nothing smaller"
        with pytest.raises(UserError, match="a unit of the order"):
            geometry.check_unit(sent)


def test_a_unit_that_is_too_large_is_refused_with_the_arithmetic() -> None:
    named = Geometry.of(OrderSection(window=16, groups=2), 256, 700_000)
    named.check_unit(700_000)
    with pytest.raises(UserError) as refused:
        named.check_unit(1_000_000)
    words = str(refused.value)
    assert "2048 samples (128 of a batch of 256 x training.order.window 16) of 1.0 MiB, 1.9 GiB together" in words
    assert "may be 1.5 GiB: lower training.order.window, raise training.order.groups (now 2, at most the 64 lanes)" in words
    with pytest.raises(UserError, match="of the order is 2048 samples"):
        Geometry(512, 16, 16, 32).shared_by(9).check_unit(1_000_000)  # sixteen lanes are nine groups for nine workers


def test_epochs_and_seeds_differ_and_repeat_themselves() -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, int]]:
        return epoch_of(EpochOrder(np.array([50, 30, 40]), Geometry(8, 4, 2, 2), seed, epoch))

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_an_order_is_the_same_in_every_version() -> None:
    rows = EpochOrder(np.array([5, 3, 8]), Geometry(4, 2, 2, 2), seed=7, epoch=1).batch(0)
    assert samples(rows) == [(1, 1), (2, 1), (2, 6), (2, 7)]


def test_a_batch_draws_from_all_over_the_corpus() -> None:
    plan = EpochOrder(np.full(100, 100), Geometry(64, 64, 8, 4), seed=0, epoch=0)
    assert len(set(plan.batch(3).shards.tolist())) > 60


def test_a_plan_of_a_hundred_thousand_shards_reaches_any_unit_without_walking_there() -> None:
    schedule = Schedule(np.full(100_000, 10_000), Geometry(1024, 64, 16, 16), seed=0, epochs=100)
    step = schedule.steps * 9 // 10
    epoch, rows = schedule.unit(0, step)
    assert epoch == step // schedule.steps_per_epoch
    assert samples(rows)[:64] == samples(schedule.plan(epoch).batch(step % schedule.steps_per_epoch))[:64]


@pytest.mark.parametrize(
    ("batch", "lanes", "groups", "words"), [(10, 4, None, "does not divide the batch"), (8, 8, 3, "does not divide the 8 lanes")]
)
def test_sizes_that_do_not_divide_each_other_are_refused(batch: int, lanes: int, groups: int | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        Geometry.of(OrderSection(lanes=lanes, groups=groups), batch, row_bytes=1000)


@given(st.integers(1, 5000), st.integers(100, 10**7))
def test_what_a_recipe_leaves_open_is_filled_with_sizes_that_fit(batch: int, row_bytes: int) -> None:
    geometry = Geometry.of(OrderSection(), batch, row_bytes)
    assert batch % geometry.lanes == geometry.lanes % geometry.groups == 0
    assert geometry.window >= 1


@given(st.sampled_from([Geometry(8, 8, 4, 3), Geometry(24, 12, 4, 2), Geometry(64, 64, 8, 1)]), st.data())
def test_any_number_of_ranks_up_to_the_lanes_shares_the_same_batches_evenly(geometry: Geometry, data: st.DataObject) -> None:
    world = data.draw(st.integers(1, geometry.lanes))
    schedule = Schedule(np.array([50, 0, 90, 1, 77]), geometry, seed=1, epochs=2)
    shared = schedule.shared_by(world)
    assert shared.geometry.groups % world == 0
    assert [lane for group in range(shared.geometry.groups) for lane in shared.geometry.lanes_of(group)] == list(
        range(geometry.lanes)
    )
    mine = [sum(shared.geometry.rows_of(g) for g in range(r, shared.geometry.groups, world)) for r in range(world)]
    assert sum(mine) == geometry.batch
    assert max(mine) - min(mine) <= geometry.per_lane
    step = data.draw(st.integers(0, schedule.steps_per_epoch - 1))
    assert samples(shared.plan(1).batch(step)) == samples(schedule.plan(1).batch(step))


def test_more_ranks_than_lanes_are_refused() -> None:
    Geometry(16, 8, 4, 1).check_workers(8)
    with pytest.raises(UserError, match="9 workers cannot share 8 lanes: take at most 8 workers"):
        Geometry(16, 8, 4, 1).check_workers(9)


def test_a_corpus_smaller_than_a_batch_is_refused_unless_it_wraps() -> None:
    with pytest.raises(UserError, match=r"5 samples, less than one batch of 8: lower training\.batch"):
        Schedule(np.array([5]), Geometry(8, 8, 4, 1), seed=0, epochs=1)
    assert Schedule(np.array([5]), Geometry(8, 8, 4, 1), seed=0, epochs=1, tail="wrap").steps == 1
    with pytest.raises(UserError, match="no samples"):
        Schedule(np.array([0, 0]), Geometry(8, 8, 4, 1), seed=0, epochs=1)
