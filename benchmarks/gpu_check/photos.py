"""The photos of the check: windows of scikit-image's photos, which come in its wheel; each photo is a class."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from benchmarks.photos import jpeg

WIDTH, HEIGHT = 300, 240
BAD = 2
"""Number of files in the training part that cannot be decoded."""

_PHOTOS = ("astronaut", "cat", "coffee", "rocket")
_TRAIN_SHARE = 0.7  # of the windows' places from left to right; those of the two parts overlap in the photo


def windows(count: int, train: bool = True) -> Iterator[tuple[str, Image.Image]]:
    """`count` windows of the photos in turn, with their class, each at another place."""
    from skimage import data

    photos = {name: Image.fromarray(getattr(data, name)()) for name in _PHOTOS}
    each = -(-count // len(photos))
    for n in range(count):
        name = _PHOTOS[n % len(photos)]
        photo = photos[name]
        place = (n // len(photos) + 0.5) / each
        across = place * _TRAIN_SHARE if train else _TRAIN_SHARE + place * (1 - _TRAIN_SHARE)
        left = round(across * (photo.width - WIDTH))
        top = (37 * n) % (photo.height - HEIGHT)
        yield name, photo.crop((left, top, left + WIDTH, top + HEIGHT))


def write(folder: Path, train: int, test: int) -> None:
    """Write `folder/train` and `folder/test`, a folder for each class: JPEGs, `BAD` of the training part damaged."""
    for part, count in (("train", train), ("test", test)):
        for n, (name, photo) in enumerate(windows(count, part == "train")):
            place = folder / part / name
            place.mkdir(parents=True, exist_ok=True)
            if part == "train" and n == 1:
                (place / f"{n:05d}.jpg").write_bytes(jpeg(photo)[:3000])
            elif part == "train" and n == 2:
                (place / f"{n:05d}.png").write_bytes(_damaged(photo))
            else:
                (place / f"{n:05d}.jpg").write_bytes(jpeg(photo))


def _damaged(photo: Image.Image) -> bytes:
    """A PNG of the right structure whose data no decoder can unpack."""
    buffer = io.BytesIO()
    photo.save(buffer, "PNG")
    whole = buffer.getvalue()
    return whole[:400] + bytes(60) + whole[460:]
