"""Reads the annotation of one photo in the XML of the VOC challenge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree


@dataclass(frozen=True)
class VocImage:
    """One annotation: the photo's height and width in pixels, None where it does not say, and its boxes.

    A box has COCO's fields without `category_id`, and the class's name as `category`.
    """

    height: int | None
    width: int | None
    boxes: list[dict[str, Any]]


def read_voc(body: bytes) -> VocImage:
    """Read an annotation.

    VOC counts pixels from 1, and a box holds its last ones: xmin 1 and xmax 10 are ten pixels from the left edge on. A box whose
    last pixel is not behind its first has no area, and is kept as such: whoever reads it then refuses it.

    Raises:
        ValueError: it is no such XML.
    """
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body:
        raise ValueError("it declares entities, which an annotation does not need")
    try:
        root = ElementTree.fromstring(body)  # without entities nothing can grow
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from None
    boxes = []
    for found in root.iter("object"):
        left, top, right, bottom = (_number(found, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
        across, down = (right - left + 1 if right > left else right - left, bottom - top + 1 if bottom > top else bottom - top)
        difficult = {"difficult": 1} if found.findtext("difficult", "0").strip() == "1" else {}
        name = found.findtext("name", "").strip()
        if not name:
            raise ValueError("an object has no name")
        boxes.append({"bbox": [left - 1, top - 1, across, down], "category": name, "iscrowd": 0, **difficult})
    return VocImage(_side(root, "height"), _side(root, "width"), boxes)


def _side(root: ElementTree.Element, name: str) -> int | None:
    text = root.findtext(f"size/{name}", "").strip()
    return int(text) or None if text.isdecimal() else None


def _number(element: ElementTree.Element, path: str) -> float:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"it has no {path}")
    value = float(text)
    return int(value) if value.is_integer() else value
