"""The photos: a folder or tar of them, at one of three sizes, repeated into WebDataset shards that fit in memory."""

from __future__ import annotations

import io
import shutil
import statistics
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

_A_SHARD, _PHOTOS, _TILES = 64, 1920, 40_960
_QUALITY = 90
SIDES = {"500x375": 500, "1600x1200": 1600}
TILE = 32


@dataclass(frozen=True)
class Photos:
    """Shards of photos of one size.

    Args:
        shards: the tars.
        images: how many there are.
        about: sizes and bytes, in words.
    """

    shards: tuple[str, ...]
    images: int
    about: str


def prepare(source: str, folder: Path, size: str) -> Photos:
    """Pack photos at a size, once.

    Args:
        source: folder, or tar, of photos.
        folder: where the shards go.
        size: `500x375`: photos whose longer side is at most 500 stay as they are, byte for byte, larger ones become as large;
            `1600x1200`: all are resized to a longer side of 1600; `32x32`: tiles of 32 pixels are cut from them.
    """
    place = folder / size
    if not (place / "done").exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        files = list(_tiles(source) if size == "32x32" else _resized(source, SIDES[size]))
        count = _TILES if size == "32x32" else _PHOTOS
        per_shard = 1024 if size == "32x32" else _A_SHARD
        for start in range(0, count, per_shard):
            with tarfile.open(place / f"shard-{start // per_shard:04d}.tar", "w") as tar:
                for i in range(start, start + per_shard):
                    data = files[i % len(files)]
                    member = tarfile.TarInfo(f"{i:06d}.jpg")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        (place / "done").write_text(_about(files))
    shards = tuple(sorted(str(path) for path in place.glob("*.tar")))
    return Photos(shards, _TILES if size == "32x32" else _PHOTOS, (place / "done").read_text())


def files_of(source: str) -> Iterator[bytes]:
    """The JPEGs of a folder or tar, in its order."""
    if Path(source).is_dir():
        for path in sorted(Path(source).rglob("*")):
            if path.suffix.lower() in (".jpg", ".jpeg"):
                yield path.read_bytes()
        return
    with tarfile.open(source) as tar:
        for member in tar:
            if member.name.lower().endswith((".jpg", ".jpeg")):
                file = tar.extractfile(member)
                assert file is not None
                yield file.read()


def _resized(source: str, side: int) -> Iterator[bytes]:
    for data in files_of(source):
        photo = Image.open(io.BytesIO(data))
        if photo.mode == "RGB" and photo.getexif().get(274, 1) == 1:  # not all contenders turn photos upright
            longer = max(photo.size)
            kept = side == SIDES["500x375"] and longer <= side
            yield data if kept else jpeg(photo.resize((round(side * photo.width / longer), round(side * photo.height / longer))))


def _tiles(source: str) -> Iterator[bytes]:
    """A grid of tiles from each photo, shrunk so that a tile shows something."""
    for data in files_of(source):
        photo = Image.open(io.BytesIO(data)).convert("RGB").resize((5 * TILE, 4 * TILE))
        for k in range(20):
            x, y = k % 5 * TILE, k // 5 * TILE
            yield jpeg(photo.crop((x, y, x + TILE, y + TILE)))


def jpeg(photo: Image.Image) -> bytes:
    """The photo as a JPEG of quality 90."""
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _about(files: list[bytes]) -> str:
    sizes = [Image.open(io.BytesIO(data)).size for data in files]
    width, height = (statistics.median(size[k] for size in sizes) for k in (0, 1))
    pixels = statistics.mean(w * h for w, h in sizes)
    kilobytes = statistics.mean(map(len, files)) / 1000
    mean = f"mean {pixels / 1e6:.3f} Mpixel and {kilobytes:.1f} kB"
    return f"{len(files)} different images, median {width:.0f}x{height:.0f}, {mean}"
