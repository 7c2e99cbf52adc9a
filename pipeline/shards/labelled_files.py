"""What `pack` and `inspect` need to know of the files that hold masks or boxes of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class NamedClass:
    """A class: its number in masks and boxes, and its name."""

    number: int
    name: str


class TargetFiles(Protocol):
    """The targets of images that are packed; made by `pipeline.targets.open_targets`."""

    member: str
    """Extension of the member that holds a sample's target."""

    def has(self, path: str) -> bool:
        """Whether there is a target of the image at this path, relative to the source of the pack."""

    def body(self, path: str) -> bytes:
        """The member of that image; called once for each image that is packed."""

    def classes(self) -> list[NamedClass]:
        """The classes, in the order of their numbers; to be called after all members were made."""

    def faults(self) -> dict[str, str]:
        """What training will refuse of the targets made so far, and what could not be read: path of the file -> reason."""

    def unused(self, paths: Iterable[str]) -> list[str]:
        """Files, or images in a file, that hold targets of none of these images."""


@dataclass
class TargetTally:
    """What the masks or boxes of some images hold.

    Args:
        images: that have a good mask, or a good list of boxes.
        numbers: class number -> pixels, or boxes.
        ignored: pixels, or boxes, that do not count.
        empty: images without a box.
        degenerate: boxes without area; their images are refused.
    """

    images: int = 0
    numbers: Counter[int] = field(default_factory=Counter)
    ignored: int = 0
    empty: int = 0
    degenerate: int = 0

    def add(self, other: TargetTally) -> None:
        """Add the counts of other images."""
        self.images += other.images
        self.numbers.update(other.numbers)
        self.ignored += other.ignored
        self.empty += other.empty
        self.degenerate += other.degenerate


class TargetSurvey(Protocol):
    """Counts the targets of images that are inspected; picklable. Made as `pipeline.targets.TargetReader`."""

    @property
    def members(self) -> tuple[str, ...]:
        """Extensions of the members that hold targets."""

    def look(self, member: str, body: bytes | memoryview, height: int, width: int) -> tuple[TargetTally, str | None]:
        """Count what the target of one image holds, and say why training will refuse it, None where it will not.

        Args:
            member: the extension of the file, one of `members`.
            body: the file; empty where there is none.
            height: of the upright photo, pixels.
            width: likewise.
        """


class Matcher:
    """Finds the target of an image by its path: the same path but for the extension, or else the same file name.

    Args:
        stems: paths without extension, each with what lies there.
    """

    def __init__(self, stems: dict[str, str]) -> None:
        names = Counter(map(base_name, stems))
        self._stems = stems
        self._by_name = {base_name(stem): stem for stem in stems if names[base_name(stem)] == 1}

    def find(self, path: str) -> str | None:
        """The stem that belongs to an image, or None."""
        stem = stem_of(path)
        return stem if stem in self._stems else self._by_name.get(base_name(stem))

    def unused(self, paths: Iterable[str]) -> list[str]:
        """What lies at the stems that belong to none of the images."""
        used = {self.find(path) for path in paths}
        return [file for stem, file in self._stems.items() if stem not in used]


def stem_of(path: str) -> str:
    """A path without its last extension."""
    folder, slash, base = path.rpartition("/")
    return folder + slash + (base.rpartition(".")[0] or base)


def base_name(path: str) -> str:
    """The last part of a path."""
    return path.rpartition("/")[2]
