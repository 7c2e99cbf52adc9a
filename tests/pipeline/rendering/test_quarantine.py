"""The failure budget: what is quarantined is counted once, named, and stops the run when there is too much of it."""

from __future__ import annotations

import json

import pytest

from pipeline.errors import BudgetExceeded
from pipeline.rendering.quarantine import Quarantine


def failures(*keys: int) -> list[str]:
    """Of a sample a key, which lies at the row of that number."""
    return [json.dumps({"shard": "s.tar", "key": f"k{key}", "row": key, "reason": f"reason {key}"}) for key in keys]


def test_a_sample_that_fails_in_every_epoch_is_counted_once() -> None:
    quarantine = Quarantine(2, samples=10)
    for _ in range(5):
        quarantine.add(10, ["", *failures(1, 2), ""])
    assert len(quarantine) == 2
    assert quarantine.rows() == [{"shard": "s.tar", "key": f"k{n}", "row": n, "reason": f"reason {n}"} for n in (1, 2)]


def test_samples_of_one_key_in_a_shard_are_counted_one_by_one() -> None:
    def namesakes(*rows: int) -> list[str]:
        return [json.dumps({"shard": "s.tar", "key": "k", "row": row, "reason": "bad"}) for row in rows]

    quarantine = Quarantine(2, samples=10)
    quarantine.add(5, namesakes(7, 4))
    quarantine.add(5, namesakes(4))
    assert [row["row"] for row in quarantine.rows()] == [4, 7]
    with pytest.raises(BudgetExceeded, match="3 of 10 samples"):
        quarantine.add(5, namesakes(5))


def test_a_count_is_exceeded_by_one_more_and_the_error_names_the_first() -> None:
    quarantine = Quarantine(2, samples=10)
    quarantine.add(5, failures(1, 2))
    with pytest.raises(BudgetExceeded, match=r"(?s)3 of 6 samples .* over failures\.budget of 2.*s\.tar k1: reason 1"):
        quarantine.add(1, failures(3))


def test_the_error_does_not_say_of_a_missing_label_that_it_was_not_decoded() -> None:
    unlabelled = json.dumps({"shard": "s.tar", "key": "k", "row": 0, "reason": "it has no label"})
    with pytest.raises(BudgetExceeded, match=r"1 of 2 samples cannot be used, over failures\.budget of 0") as refused:
        Quarantine(0, samples=10).add(2, [unlabelled])
    assert "s.tar k: it has no label" in str(refused.value)
    assert "decoded" not in str(refused.value)


def test_a_share_is_of_the_samples_seen_but_not_of_the_first_few() -> None:
    quarantine = Quarantine(0.01, samples=100_000)
    quarantine.add(10, failures(*range(10)))
    quarantine.add(1990, failures(*range(10, 20)))
    with pytest.raises(BudgetExceeded, match=r"1\.00% of the samples"):
        quarantine.add(0, failures(20))


def test_no_budget_means_no_bad_sample() -> None:
    with pytest.raises(BudgetExceeded):
        Quarantine(0, samples=10).add(1, failures(1))


def test_a_resumed_run_takes_up_its_count() -> None:
    before = Quarantine(2, samples=10)
    before.add(5, failures(1, 2))
    after = Quarantine(2, samples=10)
    after.restore(before.rows(), seen=5)
    with pytest.raises(BudgetExceeded):
        after.add(5, failures(3))


def test_the_count_of_an_older_checkpoint_which_knows_no_rows_is_taken_up() -> None:
    old = [{"shard": "s.tar", "key": key, "reason": "bad"} for key in ("k1", "k2")]
    quarantine = Quarantine(2, samples=10)
    quarantine.restore(old, seen=5)
    assert quarantine.rows() == old
    quarantine.add(5, failures(1))  # the next epoch meets the first of them again
    assert len(quarantine) == 2
    assert quarantine.rows() == [{"shard": "s.tar", "key": "k1", "row": 1, "reason": "reason 1"}, old[1]]
    with pytest.raises(BudgetExceeded):
        quarantine.add(0, failures(3))
