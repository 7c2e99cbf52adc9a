"""Maps the class numbers and names of the training and the test corpus to one set of labels."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pipeline.errors import UserError
from pipeline.shards.corpus import Corpus

UNNAMED = "numbers without names"
_MOST_CLASSES = 255


@dataclass(frozen=True)
class ClassMap:
    """Labels 0, 1, 2, ... of the classes that occur, whatever numbers the corpora give them.

    Args:
        names: the class of each label: those of the training set first, in the order of their numbers there, then those that only
            the test set has. Where a corpus names no classes, the name is the number.
        trained: how many of them have training images; only these can be predicted.
        untested: those of them that have no test image.
        train: label of each class number of the training corpus.
        test: label of each class number of the test corpus.
    """

    names: tuple[str, ...]
    trained: int
    untested: tuple[str, ...]
    train: dict[int, int]
    test: dict[int, int]

    @property
    def untrained(self) -> tuple[str, ...]:
        """Classes of the test set that have no training image."""
        return self.names[self.trained :]

    def warnings(self) -> list[str]:
        """Warnings, in words, about classes that only one of the sets has."""
        said = []
        if self.untrained:
            said.append(
                f"classes that only downstream.test has, and that no training image shows: {listed(self.untrained)}; "
                "each of their images counts as wrong"
            )
        if self.untested:
            said.append(f"classes of downstream.train without a test image: {listed(self.untested)}")
        return said


def class_map(train: Corpus, test: Corpus) -> ClassMap:
    """Match the classes of two corpora by name, or by number if neither names them.

    Raises:
        UserError: there are no labels; only one corpus names its classes; they have no class in common, or one that is spelt in
            two Unicode forms; or the training set has a single class.
    """
    if (train.classes is None) != (test.classes is None):
        words = [UNNAMED if c.classes is None else f"the classes {listed(c.classes)}" for c in (train, test)]
        raise UserError(
            f"downstream.train has {words[0]}, downstream.test {words[1]}: which number is which class cannot be known; "
            "pack both from a folder per class, or both with `cls` members alone"
        )
    learnt, tested = _named(train, "train"), _named(test, "test")
    known = set(learnt.values())
    extra = [name for name in tested.values() if name not in known]
    _refuse_lookalikes(known, extra)
    if len(extra) == len(tested):
        raise UserError(
            f"downstream.train and downstream.test have no class in common: {listed(learnt.values())}, and {listed(extra)}; "
            "classes are matched by name, so pack both from folders of the same names"
        )
    if len(learnt) < 2:
        raise UserError("downstream.train has one class only; the task needs two at least")
    names = (*learnt.values(), *extra)
    label = {name: i for i, name in enumerate(names)}
    seen = set(tested.values())
    return ClassMap(
        names=names,
        trained=len(learnt),
        untested=tuple(name for name in learnt.values() if name not in seen),
        train={number: label[name] for number, name in learnt.items()},
        test={number: label[name] for number, name in tested.items()},
    )


def numbered_class_map(train: Corpus, test: Corpus, option: str, least: int = 2) -> ClassMap:
    """Match the classes of two corpora of masks or boxes by the names that their indices give to numbers.

    Which of them occur is not known before all targets are read, so all of `train` count as trained, and none as untested.

    Args:
        train: to learn from.
        test: to test on.
        option: the option of `pack` that makes such shards, for errors.
        least: classes that there must be.

    Raises:
        UserError: the index of one names no numbers, they have no class in common or one that is spelt in two Unicode forms, or
            the classes are too few or too many.
    """
    named: list[dict[int, str]] = []
    for side, corpus in (("train", train), ("test", test)):
        if corpus.classes is None or corpus.numbers is None:
            why = f" ({corpus.disagreement})" if corpus.disagreement else ""
            raise UserError(
                f"downstream.{side}: its index does not say which number is which class{why}: pack it with {option} "
                "(`pseudolabel pack --help`)"
            )
        named.append(dict(zip(corpus.numbers, corpus.classes)))
    learnt, tested = named
    known = set(learnt.values())
    extra = [name for name in tested.values() if name not in known]
    _refuse_lookalikes(known, extra)
    if len(extra) == len(tested):
        raise UserError(
            f"downstream.train and downstream.test have no class in common: {listed(learnt.values())}, and {listed(extra)}"
        )
    names = (*learnt.values(), *extra)
    if len(learnt) < least or len(names) > _MOST_CLASSES:
        raise UserError(
            f"downstream.train and downstream.test have {len(names)} classes; from {least} to {_MOST_CLASSES} can be learnt"
        )
    label = {name: i for i, name in enumerate(names)}
    return ClassMap(names, len(learnt), (), *({number: label[name] for number, name in side.items()} for side in named))


def listed(names: Iterable[str]) -> str:
    """The first five names and their number, in words."""
    names = list(names)
    return f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''} ({len(names)})"


def _named(corpus: Corpus, side: str) -> dict[int, str]:
    """Names of the classes that have a usable image, by number, in its order."""
    parts = []
    for i, count in enumerate(corpus.counts):
        if count:
            usable = corpus.members(i).table.column("problem").is_null().to_numpy()
            parts.append(np.unique(corpus.labels(i)[usable]))
    numbers = [number for number in np.unique(np.concatenate([np.zeros(0, np.int64), *parts])).tolist() if number >= 0]
    if not numbers:
        why = f" ({corpus.disagreement})" if corpus.disagreement else ""
        raise UserError(
            f"downstream.{side} has no labels{why}: pack it with `--labels folder`, or give each sample a `cls` member"
        )
    if corpus.classes is None:
        return {number: str(number) for number in numbers}
    if numbers[-1] >= len(corpus.classes):
        raise UserError(
            f"downstream.{side} has the label {numbers[-1]}, and its index names {len(corpus.classes)} classes: "
            "the shards were changed after they were packed; pack them again"
        )
    return {number: corpus.classes[number] for number in numbers}


def _refuse_lookalikes(known: Iterable[str], extra: Iterable[str]) -> None:
    """Refuse names that look the same and differ in Unicode form, as macOS and Linux write them: they would be two classes."""
    looks = {unicodedata.normalize("NFC", name): name for name in known}
    for name in extra:
        other = looks.get(unicodedata.normalize("NFC", name))
        if other is not None:
            raise UserError(
                f"the class {name!r} of downstream.test and {other!r} of downstream.train differ in their Unicode normalisation "
                f"form only ({_form(name)} there, {_form(other)} here): they look alike and are two names; rename the folders "
                "of one set to the other's form (such as `convmv -f utf8 -t utf8 --nfc -r --notest FOLDER`) and pack it again"
            )


def _form(name: str) -> str:
    return next((form for form in ("NFC", "NFD") if unicodedata.is_normalized(form, name)), "neither NFC nor NFD")
