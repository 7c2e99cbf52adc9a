"""A share of the labels is known: nested, keyed, even over classes, the same for any workers; all other labels are hidden."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.materialize.run import check_recipe
from pipeline.recipe import Recipe, parse_recipe
from pipeline.rendering.renderer import Columns
from pipeline.shards.corpus import Corpus
from pipeline.shards.label_share import select_share
from pipeline.shards.opening import open_corpus, open_training_corpus
from pipeline.streaming.pairs import open_source
from pipeline.streaming.plan import steps
from tests.pipeline.made_images import encode, photo
from tests.trainers.arrived import Arrived
from trainers.running.preflight import check_classes

SEED = 5


@pytest.fixture
def write(tmp_path: Path, make_tar):
    """`write(folder, labels)`: three shards with a photo for each label, None for no label; returns the folder."""

    def made(folder: str, labels: list[int | None]) -> str:
        whole = photo()
        for shard in range(3):
            members = []
            for n in range(shard, len(labels), 3):
                members.append((f"{n:03d}.png", encode(whole.crop((n, n, n + 40, n + 40)), "PNG")))
                members += [(f"{n:03d}.cls", str(labels[n]).encode())] if labels[n] is not None else []
            make_tar(tmp_path / folder / f"{shard}.tar", members)
        return str(tmp_path / folder)

    return made


LABELS: list[int | None] = [*([0] * 30), *([1] * 20), *([2] * 10)]


def recipe(shards: str | list[str], labelled: Any, **sections: Any) -> Recipe:
    document = {
        "name": "few",
        "seed": SEED,
        "corpus": {"shards": shards, "labelled": labelled},
        "image": {"size": 32},
        "tasks": {"supervised": {"classes": 3}, "rotation": {}, "fixmatch": {"classes": 3}},
        "engine": "cpu",
        "training": {"batch": 12, "order": {"groups": 6}},
    }
    return parse_recipe({**document, **sections})


def opened(shards: str | list[str], labelled: Any) -> Corpus:
    spec = recipe(shards, labelled)
    return open_training_corpus(spec.corpus, seed=spec.seed)


def classes_of(corpus: Corpus) -> dict[int, int]:
    """The known class of each sample, by id; every sample must be there once, and `labels` agree with what is read."""
    found: dict[int, int] = {}
    for i, count in enumerate(corpus.counts):
        samples = corpus.read(i, np.arange(count))
        assert [sample.label for sample in samples] == corpus.labels(i).tolist()
        assert not found.keys() & {sample.id for sample in samples}
        found |= {sample.id: sample.label for sample in samples}
    return found


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_the_same_share_of_each_class_is_known_and_at_least_one(write, share: float) -> None:
    shards = write("all", LABELS)
    found = classes_of(opened(shards, share))
    known = [label for label in found.values() if label >= 0]
    assert np.bincount(known).tolist() == [max(1, round(share * n)) for n in (30, 20, 10)]
    downstream = select_share(open_corpus(shards), share, SEED)
    assert classes_of(downstream) == {number: label for number, label in found.items() if label >= 0}
    assert found.keys() == classes_of(open_corpus(shards)).keys()


def test_a_smaller_share_is_part_of_a_larger_one_whatever_the_order_of_shards(write) -> None:
    shards = write("all", LABELS)
    known = [{n for n, label in classes_of(opened(shards, share)).items() if label >= 0} for share in (0.01, 0.1, 1.0)]
    assert known[0] < known[1] < known[2]
    assert len(known[2]) == 60
    turned = [f"{shards}/{n}.tar" for n in (2, 0, 1)]
    assert {n for n, label in classes_of(opened(turned, 0.1)).items() if label >= 0} == known[1]


def batches(spec: Recipe, world: int) -> Iterator[list[Columns]]:
    """The columns of all ranks, step by step."""
    source = open_source(spec)
    source = replace(source, schedule=source.schedule.shared_by(world))
    geometry, whole = source.schedule.geometry, list(Arrived(source).iter_batches())
    ranks = []
    for rank in range(world):
        own = [unit for n, unit in enumerate(whole) if n % geometry.groups % world == rank]
        ranks.append(list(steps([source], _Given(own), rank, world)))
    for parts in zip(*ranks, strict=True):
        yield [columns for _, columns in parts]


class _Given:
    """Units that have arrived."""

    def __init__(self, units: list[Any]) -> None:
        self._units = units

    def iter_batches(self, **given: Any) -> Iterator[Any]:
        yield from self._units


def test_batches_and_their_known_classes_are_those_of_any_number_of_workers(write) -> None:
    spec = recipe(write("all", LABELS), {"share": 0.1, "batch": 0.25})

    def by_id(world: int) -> list[dict[int, tuple[int, int, bytes]]]:
        return [
            {
                int(n): (int(one["class"][i]), int(one["supervised.label"][i]), one["fixmatch.input"][i].tobytes())
                for one in ranks
                for i, n in enumerate(one["id"])
            }
            for ranks in batches(spec, world)
        ]

    alone = by_id(1)
    assert len(alone) == 5
    assert alone == by_id(2) == by_id(3)
    known = [label for step in alone for label, _, _ in step.values() if label >= 0]
    assert len(known) == 15  # a quarter of an epoch of 60 places: 6 images, each two or three times
    assert all(label == given for step in alone for label, given, _ in step.values())


def test_hidden_classes_change_nothing_bit_by_bit(write) -> None:
    """The same shards whose other images have no class at all, where all that are there are known."""
    shards = write("all", LABELS)
    first, members = opened(shards, 0.1), open_corpus(shards)
    known = {sample.key for i in range(3) for sample in first.read(i, np.arange(first.counts[i]))}
    order = sorted(key for i in range(3) for key in members.members(i).keys)
    bare = write("bare", [label if key in known else None for key, label in zip(order, LABELS)])
    for one, other in zip(batches(recipe(shards, {"share": 0.1, "batch": 0.25}), 1), batches(recipe(bare, {"batch": 0.25}), 1)):
        for name, column in one[0].items():
            if name != "seconds":
                assert np.array_equal(column, other[0][name]), name


def test_labelled_and_unlabelled_shards_are_listed_together(write) -> None:
    both = [write("some", [0, 1, 2] * 2), write("others", [None] * 9)]
    spec = parse_recipe({**recipe(both, {"batch": 0.5}).model_dump(mode="json"), "corpus": {
        "shards": both, "labelled": {"batch": 0.5}, "keys": "shard",
    }})  # fmt: skip
    corpus = open_training_corpus(spec.corpus, seed=spec.seed)
    assert [(p.name, p.weight) for p in corpus.portions] == [("labelled", 0.5), ("unlabelled", 0.5)]
    assert sorted(classes_of(corpus).values()) == [*([-1] * 9), 0, 0, 1, 1, 2, 2]


def test_all_of_a_batch_are_labelled_ones_where_it_says_so(write) -> None:
    corpus = opened(write("all", LABELS), {"share": 0.1, "batch": 1})
    assert (corpus.samples, corpus.portions) == (6, ())


def test_a_corpus_without_labels_is_refused_in_a_line(write) -> None:
    bare = write("bare", [None] * 12)
    with pytest.raises(UserError, match=r"^corpus\.labelled: the shards have no labels: pack them with `--labels folder`, .*$"):
        opened(bare, 0.1)
    with pytest.raises(UserError, match=r"^tasks\.supervised: the corpus has no labels: pack it with `--labels folder`, .*$"):
        check_classes(recipe(bare, None).tasks, opened(bare, None))


def test_other_classes_than_the_task_expects_are_refused(write) -> None:
    shards = write("all", LABELS)
    check_classes(recipe(shards, None).tasks, opened(shards, None))
    few = recipe(shards, None, tasks={"supervised": {"classes": 2}})
    named = replace(opened(shards, None), classes=["cat", "cup", "dog"])
    with pytest.raises(UserError, match=r"tasks\.supervised\.classes: 2, and the shards' index names 3 classes: set it to 3"):
        check_classes(few.tasks, named)
    with pytest.raises(UserError, match=r"the corpus has the class 2, and the task expects 2 classes, 0 to 1: set its `classes`"):
        list(batches(few, 1))


def test_what_cannot_be_is_refused_with_the_recipe(write) -> None:
    with pytest.raises(UserError, match=r"labelled: corpora of a mixture have no common labels; list .* in `shards`"):
        recipe("x", None, corpus={"mix": {"a": {"shards": "x"}}, "labelled": 0.1})
    with pytest.raises(UserError, match=r"corpus\.labelled\.share: must be less than or equal to 1"):
        recipe("x", 1.5)
    with pytest.raises(UserError, match=r"corpus\.labelled: which labels are known is no part of a rendered corpus"):
        check_recipe(recipe("x", 0.1))
    assert "labelled" not in recipe("x", None).model_dump()["corpus"]  # older recipes keep their identity
