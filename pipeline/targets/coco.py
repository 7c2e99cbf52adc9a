"""COCO's file of annotations, and the masks that its outlines make."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pipeline.errors import UserError, installing
from pipeline.shards.labelled_files import Matcher, NamedClass, stem_of
from pipeline.storage import absolute, read_all
from pipeline.targets.masks import IGNORED, MASK

_MOST = 2**16
_BACKGROUND = NamedClass(0, "background")


@dataclass(frozen=True)
class CocoImage:
    """An image of the file: height and width in pixels, and its annotations as they are."""

    height: int
    width: int
    annotations: list[dict[str, Any]]


@dataclass(frozen=True)
class CocoContent:
    """What the file holds: the name of each category's id, images by their path without extension, and who finds them."""

    categories: dict[int, str]
    images: dict[str, CocoImage]
    matcher: Matcher


def read_coco(url: str) -> CocoContent:
    """Read a file of images, annotations and categories; raises `UserError` where it cannot be read or is of another form."""
    try:
        content = json.loads(read_all(absolute(url)))
    except FileNotFoundError:
        raise UserError(f"{url}: no such file") from None
    except (ValueError, RecursionError):
        raise UserError(f"{url}: no JSON, and COCO's annotations are one JSON file") from None
    except OSError as error:
        raise UserError(f"{url} cannot be read: {error}") from None
    try:
        categories = {int(row["id"]): str(row["name"]) for row in content["categories"]}
        named = {row["id"]: (stem_of(str(row["file_name"])), row) for row in content["images"]}
        images = {stem: CocoImage(int(row["height"]), int(row["width"]), []) for stem, row in named.values()}
        for row in content["annotations"]:
            images[named[row["image_id"]][0]].annotations.append({**row, "category": categories.get(row["category_id"], "")})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{url}: not COCO's form, which has images, annotations and categories ({error!r})") from None
    return CocoContent(categories, images, Matcher({stem: str(row["file_name"]) for stem, row in named.values()}))


class CocoOutlines:
    """Masks of the outlines, polygons or run lengths, whose numbers are those of the categories; 0 is the background.

    Smaller objects lie on larger ones; a crowd does not count.

    Args:
        url: the file.

    Raises:
        UserError: as `read_coco`; a category has a number that masks cannot hold; or faster-coco-eval, which decodes outlines, is
            not installed.
    """

    member = MASK

    def __init__(self, url: str) -> None:
        try:
            from faster_coco_eval import mask
        except ImportError:
            raise UserError(f"--outlines needs faster-coco-eval, which is not installed: {installing('detection')}") from None
        self._decoder, self._coco = mask, read_coco(url)
        for number, name in self._coco.categories.items():
            if not 0 < number < _MOST or number == IGNORED:
                raise UserError(
                    f"{url}: the category {number} ({name}) cannot be a number in masks: 0 is the background, {IGNORED} marks "
                    f"pixels that do not count, and {_MOST - 1} is the largest"
                )
        self._faults: dict[str, str] = {}

    def has(self, path: str) -> bool:
        return self._coco.matcher.find(path) is not None

    def body(self, path: str) -> bytes:
        """The mask; empty, so that training refuses it, where an outline cannot be decoded."""
        image = self._coco.images[self._coco.matcher.find(path) or ""]
        try:
            return self._drawn(image)
        except ValueError as error:
            self._faults[path] = str(error)
            return b""

    def classes(self) -> list[NamedClass]:
        return [_BACKGROUND, *(NamedClass(number, name) for number, name in sorted(self._coco.categories.items()))]

    def faults(self) -> dict[str, str]:
        return self._faults

    def unused(self, paths: Iterable[str]) -> list[str]:
        return self._coco.matcher.unused(paths)

    def _drawn(self, image: CocoImage) -> bytes:
        shapes = []
        for place, row in enumerate(image.annotations, 1):
            number = IGNORED if row.get("iscrowd") else row["category_id"]
            if number != IGNORED and number not in self._coco.categories:
                raise ValueError(f"its outline {place} is of the category {number}, which has no name")
            shapes.append((number, self._inside(row.get("segmentation"), place, image)))
        mask = np.zeros((image.height, image.width), np.uint16)
        for number, inside in sorted(shapes, key=lambda shape: -int(shape[1].sum())):
            mask[inside] = number
        file = io.BytesIO()
        Image.fromarray(mask if mask.max() > 255 else mask.astype(np.uint8)).save(file, "PNG")
        return file.getvalue()

    def _inside(self, outline: Any, place: int, image: CocoImage) -> np.ndarray:
        """The pixels inside of an outline, bool (h, w)."""
        if not _is_outline(outline, image):
            raise ValueError(f"its outline {place} is neither polygons within the image nor run lengths of its size")
        try:
            runs = self._decoder.segmToRle(outline, image.width, image.height)
            return np.asarray(self._decoder.decode(runs)).reshape(image.height, image.width).astype(bool)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"its outline {place} cannot be decoded: {error}") from None


def _is_outline(outline: Any, image: CocoImage) -> bool:
    if isinstance(outline, dict):
        return outline.get("size") == [image.height, image.width] and isinstance(outline.get("counts"), list | str)
    if not isinstance(outline, list) or not outline:
        return False
    most = 2 * max(image.height, image.width)  # an outline may pass the edge a little
    return all(
        isinstance(polygon, list)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and all(isinstance(value, int | float) and math.isfinite(value) and abs(value) <= most for value in polygon)
        for polygon in outline
    )
