"""The benchmark of threads: both ways do their work, in turns, and the gain is that of pairs."""

from __future__ import annotations

import pytest
import torch

from benchmarks import threads


def test_two_ways_take_turns_and_neither_is_always_first(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    clock = iter(range(1000))
    monkeypatch.setattr(threads.time, "perf_counter", lambda: float(next(clock)))

    def slow() -> None:
        done.append("few")
        for _ in range(3):
            next(clock)

    gain = threads.compare(slow, lambda: done.append("many"), pairs=4)
    assert done == ["many", "few", "few", "many"] * 3
    assert (gain.few, gain.many, gain.ratios) == (4.0, 1.0, (4.0, 4.0, 4.0))


def test_what_is_measured_does_its_work_on_the_threads_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)  # two that wait for a busy core would hold the tests up
    recipe = threads.recipe_of(batch=2, size=32)
    threads.on_crops(recipe, 2)()
    on = threads.training_step(recipe)
    for count in (1, 2):
        on(count)()
    assert asked == [1, 2]
