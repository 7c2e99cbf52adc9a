"""Scenes of shapes pasted on real photos, whose masks and boxes are exact; small enough to learn in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from skimage import data

from pipeline.shards.pack import PackReport, pack
from pipeline.targets import open_targets

NUMBERS = {"background": 0, "disc": 7, "square": 33}
"""The classes and the numbers that stand for them in masks; 255 marks the edge of a shape."""

_COLOURS = {"disc": (230, 60, 40), "square": (40, 90, 230)}


def scene(number: int, side: int = 48) -> tuple[Image.Image, Image.Image]:
    """A photo with one or two shapes on it, and its mask; a function of the number."""
    image, mask, _ = _drawn(number, side)
    return image, mask


def scene_boxes(number: int, side: int = 48) -> list[dict[str, Any]]:
    """The boxes of the shapes in `scene`, clipped to it, as COCO's annotations."""
    found = []
    for name, (left, top, right, bottom) in _drawn(number, side)[2]:
        left, top, right, bottom = max(left, 0), max(top, 0), min(right + 1, side), min(bottom + 1, side)
        found.append({"bbox": [left, top, right - left, bottom - top], "category_id": NUMBERS[name]})
    return found


def _drawn(number: int, side: int) -> tuple[Image.Image, Image.Image, list[tuple[str, tuple[int, int, int, int]]]]:
    random = np.random.Generator(np.random.Philox(number))
    photo = (data.coffee(), data.chelsea())[number % 2]
    top, left = (int(random.integers(0, extent - side)) for extent in photo.shape[:2])
    image, mask = Image.fromarray(photo[top : top + side, left : left + side]), Image.new("L", (side, side), 0)
    boxes = []
    for name in random.permutation(list(_COLOURS))[: random.integers(1, 3)]:
        radius = int(random.integers(side // 6, side // 4))
        x, y = (int(value) for value in random.integers(radius, side - radius, 2))
        boxes.append((str(name), box := (x - radius, y - radius, x + radius, y + radius)))
        for canvas, fill, edge in ((image, _COLOURS[name], _COLOURS[name]), (mask, NUMBERS[name], 255)):
            draw = ImageDraw.Draw(canvas)
            (draw.ellipse if name == "disc" else draw.rectangle)(box, fill=fill, outline=edge)
    return image, mask, boxes


def packed_boxes(root: Path, first: int, count: int) -> PackReport:
    """Shards of scenes with boxes in `root/shards`."""
    (root / "photos").mkdir(parents=True)
    numbers = range(first, first + count)
    for number in numbers:
        scene(number)[0].save(root / f"photos/{number:04d}.jpg", quality=92)
    coco = {
        "images": [{"id": number, "file_name": f"{number:04d}.jpg", "width": 48, "height": 48} for number in numbers],
        "annotations": [{"image_id": number, **box} for number in numbers for box in scene_boxes(number)],
        "categories": [{"id": number, "name": name} for name, number in NUMBERS.items() if number],
    }
    (root / "boxes.json").write_text(json.dumps(coco))
    return pack(str(root / "photos"), str(root / "shards"), targets=open_targets(coco=str(root / "boxes.json")))


def packed_scenes(root: Path, first: int, count: int, names: bool = True) -> PackReport:
    """Shards of scenes in `root/shards`."""
    for folder in ("photos", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(first, first + count):
        image, mask = scene(number)
        image.save(root / f"photos/{number:04d}.jpg", quality=92)
        mask.save(root / f"masks/{number:04d}.png")
    if names:
        (root / "masks/classes.json").write_text('{"0": "background", "7": "disc", "33": "square"}')
    return pack(str(root / "photos"), str(root / "shards"), targets=open_targets(masks=str(root / "masks")))
