"""Opens what people have, a folder of masks, VOC's annotations or COCO's file, so that `pack` makes members of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pipeline.errors import UserError
from pipeline.shards.labelled_files import Matcher, NamedClass, TargetFiles, base_name, stem_of
from pipeline.shards.sources import File, ImageSource, open_images
from pipeline.targets.base import BadTarget
from pipeline.targets.boxes import MEMBER, boxes_json, read_boxes
from pipeline.targets.coco import CocoOutlines, read_coco
from pipeline.targets.masks import IGNORED, MASK, read_mask
from pipeline.targets.voc import read_voc

NAMES = "classes.json"
"""The file in a folder of masks that names their classes: `{"0": "background", "7": "road"}`."""


def open_targets(
    masks: str | None = None, voc: str | None = None, coco: str | None = None, outlines: bool = False
) -> TargetFiles | None:
    """Open the targets of images, for `pack`; None where none are asked for.

    Args:
        masks: folder or tar of masks, a PNG an image.
        voc: folder or tar of VOC's annotations, an XML an image.
        coco: COCO's file of annotations.
        outlines: make masks of COCO's outlines in place of its boxes.

    Raises:
        UserError: several are given, nothing is there, or it is nothing of the kind.
    """
    if outlines and coco is None:
        raise UserError("--outlines are those of COCO's file: give --coco FILE, too")
    given = {"--masks": masks, "--voc": voc, "--coco": coco}
    asked = {name: url for name, url in given.items() if url is not None}
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)}: a pack has one kind of targets; pack once for each")
    if masks is not None:
        return MaskFolder(masks)
    if voc is not None:
        return VocFolder(voc)
    if coco is None:
        return None
    return CocoOutlines(coco) if outlines else CocoFile(coco)


_OfImage = tuple[int | None, int | None, list[dict[str, Any]]]
"""The arguments of `boxes_json`."""


class MaskFolder:
    """Masks whose files are named as their images are."""

    member = MASK

    def __init__(self, url: str) -> None:
        self._source = open_images(url)
        self._files = {stem_of(file.path): file for file in _named(self._source, ".png")}
        if not self._files:
            raise UserError(f"{url}: holds no PNG, and masks are PNGs")
        self._matcher = Matcher({stem: file.path for stem, file in self._files.items()})
        self._names = _names(self._source, url)
        self._found: set[int] = set(self._names)
        self._faults: dict[str, str] = {}

    def has(self, path: str) -> bool:
        return self._matcher.find(path) is not None

    def body(self, path: str) -> bytes:
        body = _read(self._source, self._files[self._matcher.find(path) or ""])
        try:
            numbers = set(read_mask(body).ravel().tolist()) - {IGNORED}
        except BadTarget as error:
            self._faults[path] = str(error)
            return body
        if self._names and (unknown := sorted(numbers - set(self._names))):
            self._faults[path] = f"its mask has the number {unknown[0]}, which {NAMES} does not name"
        elif not self._names:
            self._found |= numbers
        return body

    def classes(self) -> list[NamedClass]:
        return [NamedClass(number, self._names.get(number, str(number))) for number in sorted(self._found)]

    def faults(self) -> dict[str, str]:
        return self._faults

    def unused(self, paths: Iterable[str]) -> list[str]:
        return self._matcher.unused(paths)


class _Boxes:
    """Boxes that are all read at first, since their classes must be known before any is written."""

    member = MEMBER

    def __init__(self, matcher: Matcher, boxes: dict[str, _OfImage], classes: list[NamedClass]) -> None:
        self._matcher, self._boxes, self._classes = matcher, boxes, classes
        self._faults: dict[str, str] = {}

    def has(self, path: str) -> bool:
        return self._matcher.find(path) is not None

    def body(self, path: str) -> bytes:
        body = boxes_json(*self._boxes[self._matcher.find(path) or ""])
        try:
            read_boxes(body)
        except BadTarget as error:
            self._faults[path] = str(error)
        return body

    def classes(self) -> list[NamedClass]:
        return self._classes

    def faults(self) -> dict[str, str]:
        return self._faults

    def unused(self, paths: Iterable[str]) -> list[str]:
        return self._matcher.unused(paths)


class VocFolder(_Boxes):
    """Boxes as of the VOC challenge, in files named as their images are; classes are numbered in the order of their names."""

    def __init__(self, url: str) -> None:
        source = open_images(url)
        files = _named(source, ".xml")
        if not files:
            raise UserError(f"{url}: holds no XML, and VOC's annotations are XML")
        read, broken = {}, {}
        for file, body in source.read(files):
            try:
                read[stem_of(file.path)] = read_voc(body)
            except ValueError as error:
                broken[file.path] = f"no annotation as VOC's: {error}"
        if not read:
            raise UserError(f"{url}: {next(iter(broken))} is {next(iter(broken.values()))}")
        names = sorted({box["category"] for of_image in read.values() for box in of_image.boxes})
        number = {name: place for place, name in enumerate(names)}
        boxes = {
            stem: (of.height, of.width, [{**box, "category_id": number[box["category"]]} for box in of.boxes])
            for stem, of in read.items()
        }
        classes = [NamedClass(place, name) for name, place in number.items()]
        super().__init__(Matcher({stem_of(file.path): file.path for file in files if file.path not in broken}), boxes, classes)
        self._faults |= broken


class CocoFile(_Boxes):
    """Boxes as of COCO: one file of images, annotations and categories, whose ids may have gaps."""

    def __init__(self, url: str) -> None:
        coco = read_coco(url)
        fields = ("bbox", "category_id", "iscrowd", "area", "category")
        boxes: dict[str, _OfImage] = {
            stem: (of.height, of.width, [{key: row[key] for key in fields if key in row} for row in of.annotations])
            for stem, of in coco.images.items()
        }
        super().__init__(coco.matcher, boxes, [NamedClass(number, coco.categories[number]) for number in sorted(coco.categories)])


def _named(source: ImageSource, ending: str) -> list[File]:
    """The plain files of a source whose names end so; hidden ones are left out."""
    return [
        file
        for file in source.files
        if file.path.lower().endswith(ending) and file.size >= 0 and not base_name(file.path).startswith(".")
    ]


def _read(source: ImageSource, file: File) -> bytes:
    ((_, body),) = source.read([file])
    return body


def _names(source: ImageSource, url: str) -> dict[int, str]:
    """The names of classes by number, where the folder has `classes.json`; else none."""
    files = [file for file in source.files if file.path == NAMES]
    if not files:
        return {}
    try:
        found = {int(number): str(name) for number, name in json.loads(_read(source, files[0])).items()}
    except (ValueError, AttributeError, RecursionError):
        raise UserError(f'{url}: {NAMES} must name classes by their numbers, as in {{"0": "background", "7": "road"}}') from None
    if not all(0 <= number < 2**16 and number != IGNORED for number in found):
        raise UserError(f"{url}: {NAMES}: numbers go from 0 to 65535, and {IGNORED} marks pixels that do not count")
    return found
