"""Class numbers and names of two corpora become one set of labels; corpora that cannot be matched are refused with a reason."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.shards.corpus import Corpus
from pipeline.shards.opening import open_corpus
from pipeline.shards.pack import pack
from trainers.downstream import classes
from trainers.downstream.classes import class_map, numbered_class_map

Shard = Callable[..., str]


@pytest.fixture
def packed(photos: Path, tmp_path: Path) -> Callable[..., Corpus]:
    """`packed(name, *classes)`: a corpus with two photos of each class, from folders of these names."""

    def make(name: str, *folders: str) -> Corpus:
        for folder in folders:
            (tmp_path / name / folder).mkdir(parents=True)
            for n in range(2):
                shutil.copy(photos / "cat" / f"{n:03d}.jpg", tmp_path / name / folder)
        pack(str(tmp_path / name), str(tmp_path / f"{name}-shards"))
        return open_corpus(str(tmp_path / f"{name}-shards"))

    return make


def test_names_say_which_class_is_which_whatever_their_numbers(packed: Callable[..., Corpus]) -> None:
    train, test = packed("train", "cat", "dog", "owl"), packed("test", "ant", "dog", "owl")
    found = class_map(train, test)
    assert found.names == ("cat", "dog", "owl", "ant")
    assert (found.train, found.test) == ({0: 0, 1: 1, 2: 2}, {0: 3, 1: 1, 2: 2})
    assert (found.trained, found.untrained, found.untested) == (3, ("ant",), ("cat",))
    test_only, train_only = found.warnings()
    assert "ant (1)" in test_only
    assert "counts as wrong" in test_only
    assert "cat (1)" in train_only


def test_the_same_classes_keep_their_numbers_and_nothing_is_said(packed: Callable[..., Corpus]) -> None:
    found = class_map(packed("train", "cat", "dog"), packed("test", "cat", "dog"))
    assert found.train == found.test == {0: 0, 1: 1}
    assert found.warnings() == []


def test_numbers_without_names_are_packed_densely_and_keep_the_number_as_their_name(shard: Shard) -> None:
    train, test = shard("train", [15075141, 7, 7, 2**31 - 1]), shard("test", [7, 8, 15075141])
    found = class_map(open_corpus(train), open_corpus(test))
    assert found.names == ("7", "15075141", str(2**31 - 1), "8")
    assert (found.train, found.test) == ({7: 0, 15075141: 1, 2**31 - 1: 2}, {7: 0, 8: 3, 15075141: 1})
    assert (found.untrained, found.untested) == (("8",), (str(2**31 - 1),))


@settings(max_examples=50)
@given(st.sets(st.integers(0, 2**31 - 1), min_size=2, max_size=9), st.sets(st.integers(0, 2**31 - 1), min_size=1, max_size=9))
def test_any_numbers_become_the_first_labels_each_once(learnt: set[int], tested: set[int]) -> None:
    tested |= {min(learnt)}
    named = {"train": {n: str(n) for n in sorted(learnt)}, "test": {n: str(n) for n in sorted(tested)}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classes, "_named", lambda _, side: named[side])
        corpus = Corpus([], *2 * [None])  # type: ignore[arg-type]
        found = class_map(corpus, corpus)
    assert sorted({*found.train.values(), *found.test.values()}) == list(range(len(learnt | tested)))
    assert sorted(found.train.values()) == list(range(found.trained))
    assert all(found.names[label] == str(n) for side in (found.train, found.test) for n, label in side.items())


def test_a_class_whose_images_are_all_unusable_is_not_trained(shard: Shard) -> None:
    train = open_corpus(shard("train", [0, 1, "two", "two"]))
    assert class_map(train, open_corpus(shard("test", [0, 1]))).names == ("0", "1")


def test_names_that_differ_in_their_unicode_form_only_are_told_apart(packed: Callable[..., Corpus]) -> None:
    composed, apart = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")
    with pytest.raises(UserError, match=r"Unicode normalisation form only \(NFD there, NFC here\).* rename .* pack it again"):
        class_map(packed("train", "bar", composed), packed("test", "bar", apart))


def test_what_has_no_class_in_common_is_refused_with_both_lists(packed: Callable[..., Corpus]) -> None:
    with pytest.raises(UserError, match=r"no class in common: cat, dog \(2\), and ant, bee \(2\)"):
        class_map(packed("train", "cat", "dog"), packed("test", "ant", "bee"))


def test_names_on_one_side_alone_are_refused(packed: Callable[..., Corpus], shard: Shard) -> None:
    with pytest.raises(UserError, match=r"the classes cat, dog \(2\), downstream.test numbers without names"):
        class_map(packed("train", "cat", "dog"), open_corpus(shard("test", [0, 1])))


def test_one_class_and_no_labels_are_refused(shard: Shard) -> None:
    one, two, none = (open_corpus(shard(name, labels)) for name, labels in (("a", [3, 3]), ("b", [3, 4]), ("c", [None, None])))
    with pytest.raises(UserError, match=r"downstream\.train has one class only"):
        class_map(one, two)
    with pytest.raises(UserError, match=r"downstream\.test has no labels"):
        class_map(two, none)


def numbered(classes: dict[int, str] | None) -> Corpus:
    """A corpus whose index names these classes by number."""
    none = np.zeros(0, np.int64)
    return Corpus([], none, none, list(classes.values()) if classes else None, list(classes) if classes else None)


def test_classes_of_masks_are_matched_by_name_whatever_their_numbers_and_gaps() -> None:
    found = numbered_class_map(
        numbered({0: "ground", 7: "road", 900: "sky"}), numbered({1: "sky", 2: "ground", 5: "cow"}), "--masks"
    )
    assert found.names == ("ground", "road", "sky", "cow")
    assert (found.trained, found.untrained) == (3, ("cow",))
    assert (found.train, found.test) == ({0: 0, 7: 1, 900: 2}, {1: 2, 2: 0, 5: 3})


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ({0: "a", 1: "b"}, None, r"downstream\.test: its index does not say which number is which class: pack it with --masks"),
        ({0: "a", 1: "b"}, {0: "c", 1: "d"}, "no class in common"),
        ({0: "a"}, {0: "a"}, "have 1 classes; from 2 to 255"),
        ({n: f"{n}" for n in range(256)}, {0: "0"}, "have 256 classes"),
    ],
)
def test_masks_whose_classes_do_not_fit_are_refused_in_words(train: Any, test: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        numbered_class_map(numbered(train), numbered(test), "--masks")
