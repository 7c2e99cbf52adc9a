"""Makes the demo's folders of photos: tiles of scikit-image's photos, or a split of a folder of your own.

    python recipes/demo_photos.py OUT [IMAGES] [--tiles 80]

Writes OUT/train/<class>/ and OUT/test/<class>/. Without IMAGES, each class is a photo that is cut into overlapping tiles: tiles
of its left part are for training (320, or as many as `--tiles` says), tiles of its right part for testing, so that the two share
no pixel. With IMAGES, which holds a folder for each class, every fourth file of a class is for testing, chosen by a hash of its
name.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from PIL import Image

PHOTOS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
SIDE = 64
LONGEST = 256
TRAIN_SHARE = 0.55
TRAIN_TILES, TEST_TILES = 320, 120
"""Tiles of a photo in each part."""


def cut_tiles(out: Path, train: int = TRAIN_TILES) -> None:
    """Cut tiles of scikit-image's photos on a regular grid over each part, `train` of each photo to train on."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    for name in PHOTOS:
        with Image.open(folder / name) as file:
            photo = file.convert("RGB")
        photo.thumbnail((LONGEST, LONGEST))
        border = round(photo.width * TRAIN_SHARE)
        parts = {"train": (0, border, train), "test": (border, photo.width, TEST_TILES)}
        for part, (left, right, tiles) in parts.items():
            place = out / part / Path(name).stem
            place.mkdir(parents=True)
            wide, high = right - left - SIDE, photo.height - SIDE
            columns = max(1, round((tiles * wide / high) ** 0.5))
            rows = -(-tiles // columns)
            for n in range(tiles):
                row, column = divmod(n, columns)
                x, y = left + column * wide // max(1, columns - 1), row * high // max(1, rows - 1)
                photo.crop((x, y, x + SIDE, y + SIDE)).save(place / f"{n:03d}.jpg", quality=92)


def split_folder(images: Path, out: Path) -> None:
    """Link the files of a folder for each class, split into train and test."""
    classes = sorted(path for path in images.iterdir() if path.is_dir())
    if len(classes) < 2:
        raise SystemExit(f"{images}: expected a folder for each class, at least two; found {len(classes)}")
    for folder in classes:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for file in files:
            part = "test" if hashlib.sha256(file.name.encode()).digest()[0] % 4 == 0 else "train"
            link = out / part / file.relative_to(images)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the demo's folders of photos.")
    parser.add_argument("out", type=Path)
    parser.add_argument("images", nargs="?", default="", help="a folder with a folder for each class, in place of tiles")
    parser.add_argument("--tiles", type=int, default=TRAIN_TILES, help="tiles of each photo to train on")
    asked = parser.parse_args()
    if (asked.out / "train").exists():
        raise SystemExit(f"{asked.out}/train is there already: remove {asked.out}, or name another folder")
    if asked.images:
        split_folder(Path(asked.images), asked.out)
    else:
        cut_tiles(asked.out, asked.tiles)
