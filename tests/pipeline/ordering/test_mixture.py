"""Mixtures of corpora: a weight is the share of samples, and the order is as exact as that of one corpus."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from pipeline.errors import UserError
from pipeline.materialize.run import check
from pipeline.ordering.mixture import Portion, apportion, deal
from pipeline.ordering.order import Geometry, Schedule
from pipeline.ordering.quality import mixing
from pipeline.recipe import Recipe, parse_recipe
from pipeline.recipe.corpus import CorpusSection
from pipeline.rendering.units import UnitRenderer
from pipeline.shards.opening import open_training_corpus
from pipeline.shards.pack import pack
from pipeline.streaming.pairs import open_source, pairs

GEOMETRY = Geometry(16, 8, 4, 3)
SIZES = st.lists(st.lists(st.sampled_from([1, 7, 30, 100]), min_size=1, max_size=4), min_size=1, max_size=4)


def schedule_of(sizes: list[list[int]], weights: list[float], epochs: int = 1, tail: str = "drop", seed: int = 3) -> Schedule:
    portions = tuple(Portion(f"c{i}", weight, len(own)) for i, (own, weight) in enumerate(zip(sizes, weights)))
    counts = np.array([count for own in sizes for count in own])
    return Schedule(counts, GEOMETRY, seed, epochs, tail, portions=portions)  # type: ignore[arg-type]


def taken(schedule: Schedule, epoch: int) -> list[tuple[int, int, int]]:
    """Shard, row and the number of earlier occurrences, for every place of an epoch."""
    batches = [schedule.plan(epoch).batch(step) for step in range(schedule.steps_per_epoch)]
    return [place for b in batches for place in zip(b.shards.tolist(), b.rows.tolist(), b.again.tolist())]


def corpus_of(schedule: Schedule, shard: int) -> int:
    return int(np.searchsorted(np.cumsum([portion.shards for portion in schedule.portions]), shard, side="right"))


@given(st.integers(0, 10_000), st.lists(st.floats(0.001, 1000), min_size=1, max_size=6))
def test_samples_are_apportioned_to_the_last_one(total: int, weights: list[float]) -> None:
    counts = apportion(total, weights)
    assert counts.sum() == total
    assert (np.abs(counts - np.array(weights) / sum(weights) * total) < 1 + 1e-6).all()


@given(st.lists(st.integers(0, 60), min_size=1, max_size=5))
def test_every_sample_is_dealt_once_in_its_own_order_and_evenly(counts: list[int]) -> None:
    slots = np.arange(sum(counts))
    corpus, index = deal(np.array(counts), slots)
    for i, count in enumerate(counts):
        mine = np.flatnonzero(corpus == i)
        assert index[mine].tolist() == list(range(count))
        due = (mine + 1) * count / max(sum(counts), 1)
        assert np.all(np.abs(np.arange(1, count + 1) - due) <= len(counts))
    shuffled = np.random.default_rng(0).permutation(slots)
    alone, there = deal(np.array(counts), shuffled)
    assert alone.tolist() == corpus[shuffled].tolist()
    assert there.tolist() == index[shuffled].tolist()


@settings(max_examples=40)
@given(SIZES, st.data())
def test_an_epoch_holds_each_corpus_by_its_weight_and_passes_are_complete(sizes: list[list[int]], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.sampled_from([0.2, 1.0, 3.0]), min_size=len(sizes), max_size=len(sizes)))
    if sum(map(sum, sizes)) < GEOMETRY.batch:
        return
    epochs = 3
    schedule = schedule_of(sizes, weights, epochs)
    seen: Counter[tuple[int, int]] = Counter()
    for epoch in range(epochs):
        places = taken(schedule, epoch)
        assert len(set(places)) == len(places)  # the last number tells repeats in an epoch apart
        shares = Counter(corpus_of(schedule, shard) for shard, _, _ in places)
        assert [shares[i] for i in range(len(sizes))] == schedule.plan(epoch).quotas.tolist()
        seen.update((shard, row) for shard, row, _ in places)
    first = 0
    for own in sizes:  # over all epochs, the counts of two samples of a corpus differ by at most one
        times = [seen[first + shard, row] for shard, count in enumerate(own) for row in range(count)]
        assert max(times) - min(times) <= 1
        first += len(own)


def test_a_padded_epoch_leaves_the_last_places_empty() -> None:
    schedule = schedule_of([[50], [21]], [1, 1], tail="pad")
    places = taken(schedule, 0)
    assert Counter(corpus_of(schedule, shard) for shard, _, _ in places if shard >= 0) == {0: 36, 1: 35}
    assert sum(shard < 0 for shard, _, _ in places) == -71 % 16


def test_the_order_of_a_corpus_in_a_mixture_does_not_depend_on_the_others() -> None:
    def first_of(schedule: Schedule) -> list[tuple[int, int]]:
        line = schedule.plan(0)._line(0, 0)
        return list(zip(*(side.tolist() for side in line.at(np.arange(40)))))

    assert first_of(schedule_of([[30, 40], [50]], [1, 1])) == first_of(schedule_of([[30, 40], [9], [70]], [5, 1, 1]))


def test_batches_hold_all_corpora_though_every_lane_has_one_sample_a_step() -> None:
    portions = (Portion("a", 1, 1), Portion("b", 1, 1))
    schedule = Schedule(np.array([512, 512]), Geometry(64, 64, 8, 1), 0, 1, portions=portions)
    of_a = [int((schedule.plan(0).batch(step).shards == 0).sum()) for step in range(schedule.steps)]
    assert sum(of_a) == 512
    assert min(of_a) >= 16


def test_a_corpus_without_samples_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"corpus\.mix\.c1 holds no samples"):
        schedule_of([[50], [0]], [1, 1])


def test_mixing_of_many_lanes_is_near_a_full_shuffles() -> None:
    schedule = Schedule(np.full(200, 100), Geometry(256, 256, 8, 4), 0, 1)
    ours, full = mixing(schedule)
    assert full.displacement == pytest.approx(1 / 3, abs=0.02)
    assert ours.displacement == pytest.approx(full.displacement, abs=0.04)
    assert full.same_shard == pytest.approx(99 / 19_999)
    assert ours.same_shard <= 2 * full.same_shard
    few, _ = mixing(Schedule(np.full(200, 100), Geometry(256, 8, 8, 4), 0, 1))
    assert few.same_shard > 5 * full.same_shard
    plain, _ = mixing(Schedule(np.full(200, 100), Geometry(256, 1, 1, 1), 0, 1, shuffle=False))
    assert plain.displacement < 0.01


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora with the same keys: twelve tiles of a cat, four of a cup; one tile of each is damaged."""
    root = tmp_path_factory.mktemp("two")
    for name, photo, count in (("cat", data.chelsea(), 12), ("cup", data.coffee(), 4)):
        (root / name / "x").mkdir(parents=True)
        for n in range(count):
            Image.fromarray(photo[9 * n : 9 * n + 40, 12 * n : 12 * n + 40]).save(root / name / "x" / f"{n:03d}.jpg")
        (root / name / "x" / "001.jpg").write_bytes(b"not a photo")
        pack(str(root / name), str(root / f"{name}-shards"))
    return root


def recipe(two: Path, **mix: float) -> Recipe:
    parts = {name: {"shards": str(two / f"{name}-shards"), "weight": weight} for name, weight in mix.items()}
    document = {"name": "m", "seed": 1, "corpus": {"mix": parts}, "image": {"size": 32}, "tasks": {"rotation": {}}}
    return parse_recipe({**document, "engine": "cpu", "failures": {"budget": 12}, "training": {"batch": 4}})


def test_equal_keys_of_two_corpora_are_two_samples_and_repeats_are_drawn_anew(two: Path) -> None:
    batches = list(pairs(recipe(two, cat=1, cup=1)))
    ids = np.concatenate([batch["id"] for batch in batches])
    corpus = np.concatenate([batch["corpus"] for batch in batches])
    assert Counter(corpus.tolist()) == {0: 8, 1: 6}  # eight of twelve cats; four cups twice each, less the damaged one
    assert len(set(ids.tolist())) == len(ids)
    cups = np.concatenate([batch["image"] for batch in batches])[corpus == 1]
    assert len({image.tobytes() for image in cups}) == 6


def test_bad_samples_are_named_by_the_shard_of_their_own_corpus(two: Path) -> None:
    source = open_source(recipe(two, cat=3, cup=1))
    render = UnitRenderer(source, 1)
    units = [render(source.read(number)) for number in range(source.schedule.units())]
    failures = " ".join(text for unit in units for text in unit["failure"])
    assert f"{two}/cat-shards/" in failures
    assert f"{two}/cup-shards/" in failures


def test_a_recipe_names_one_corpus_or_several(two: Path) -> None:
    for wrong in ({}, {"shards": "a", "mix": {"b": {"shards": "b"}}}):
        with pytest.raises(ValueError, match="needs `shards`, or `mix`"):
            CorpusSection.model_validate(wrong)
    with pytest.raises(UserError, match=r"corpus\.mix: a mixture is not rendered as one"):
        check(recipe(two, cat=1, cup=1), str(two / "out"))
    opened = open_training_corpus(recipe(two, cat=1, cup=2).corpus)
    assert [portion.name for portion in opened.portions] == ["cat", "cup"]
    assert opened.samples == 16
