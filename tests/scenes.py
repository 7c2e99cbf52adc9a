"""Scenes of shapes pasted on real photos, whose masks are exact; small enough to learn in seconds."""

from __future__ import annotations

from pathlib import Path

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
    random = np.random.Generator(np.random.Philox(number))
    photo = (data.coffee(), data.chelsea())[number % 2]
    top, left = (int(random.integers(0, extent - side)) for extent in photo.shape[:2])
    image, mask = Image.fromarray(photo[top : top + side, left : left + side]), Image.new("L", (side, side), 0)
    for name in random.permutation(list(_COLOURS))[: random.integers(1, 3)]:
        radius = int(random.integers(side // 6, side // 4))
        x, y = (int(value) for value in random.integers(radius, side - radius, 2))
        box = (x - radius, y - radius, x + radius, y + radius)
        for canvas, fill, edge in ((image, _COLOURS[name], _COLOURS[name]), (mask, NUMBERS[name], 255)):
            draw = ImageDraw.Draw(canvas)
            (draw.ellipse if name == "disc" else draw.rectangle)(box, fill=fill, outline=edge)
    return image, mask


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
