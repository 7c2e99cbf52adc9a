"""A run that is resumed reads and renders what is still to be trained, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from pipeline.ordering.order import Geometry, Schedule
from pipeline.recipe import Recipe
from pipeline.rendering.renderer import Renderer
from pipeline.rendering.units import UnitSource
from pipeline.shards.corpus import Corpus, Sample
from pipeline.shards.opening import open_training_corpus
from pipeline.streaming.batches import batches


@pytest.mark.parametrize("world", [1, 3])
def test_only_what_is_still_to_be_trained_is_read_and_rendered(
    run_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    recipe, read, rendered = run_recipe(), [], []
    plainly, render = Corpus.read, Renderer.__call__

    def counted(self: Corpus, i: int, rows: np.ndarray | Sequence[int]) -> list[Sample]:
        read.append(len(rows))
        return plainly(self, i, rows)

    def counted_too(self: Renderer, samples: Sequence[Sample], epoch: int):
        rendered.append(sum(sample.key != "" for sample in samples))
        return render(self, samples, epoch)

    monkeypatch.setattr(Corpus, "read", counted)
    monkeypatch.setattr(Renderer, "__call__", counted_too)
    corpus = open_training_corpus(recipe.corpus)
    schedule = Schedule(corpus.counts, Geometry(8, 8, 4, 4), recipe.seed, epochs=2).shared_by(world)
    step = schedule.steps - 3
    source = UnitSource(recipe, corpus, schedule, step)
    make = source.maker(1, lambda stage, unit: None)
    for rank in range(world):
        units = (make(number) for number in range(rank, schedule.units(step), world))
        assert [now for now, _ in batches(schedule, step, rank, world, units)] == [step, step + 1, step + 2]
    assert sum(read) == sum(rendered) == 3 * 8
