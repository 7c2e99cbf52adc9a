"""Makes clips without a video: a window moves over a photo, like a camera that pans and comes nearer."""

from __future__ import annotations

import io
import random
from pathlib import Path

from PIL import Image

from benchmarks.photos import files_of, jpeg
from pipeline.shards.pack import pack

_A_PHOTO = 40
_NEAR, _FAR = (0.25, 0.4), (0.8, 1.0)
"""Side of the window at the two ends of a clip, as shares of the photo's shorter side; half way it is their geometric mean."""


def prepare(source: str, folder: Path, side: int) -> tuple[str, str]:
    """Pack clips of frames of `side` pixels, once: each fifth photo's into the test set, the others' into the training set.

    Args:
        source: folder, or tar, of photos.
        folder: where the shards go.
        side: of the frames, pixels.

    Returns:
        Folders of the shards to train and to test on.
    """
    rng = random.Random(0)
    for number, data in enumerate(files_of(source)):
        part = folder / "photos" / ("test" if number % 5 == 0 else "train")
        part.mkdir(parents=True, exist_ok=True)
        photo = Image.open(io.BytesIO(data)).convert("RGB")
        for clip in range(_A_PHOTO):
            for frame, image in enumerate(_approach(photo, side, rng)):
                (part / f"{number:05d}-{clip:02d}.{frame}.jpg").write_bytes(jpeg(image))
    for name in ("train", "test"):
        pack(str(folder / "photos" / name), str(folder / name), labels="none", clips=True)
    return str(folder / "train"), str(folder / "test")


def _approach(photo: Image.Image, side: int, rng: random.Random) -> list[Image.Image]:
    """Three frames from a drawn wide view to a drawn detail that lies in it, always towards it."""
    shorter = min(photo.size)
    far, near = rng.uniform(*_FAR) * shorter, rng.uniform(*_NEAR) * shorter
    wide = [rng.uniform(0, length - far) for length in photo.size]
    detail = [corner + rng.uniform(0, far - near) for corner in wide]
    between = (far * near) ** 0.5
    frames = []
    for window in (far, between, near):
        share = (far - window) / (far - near)
        left, top = (a + share * (b - a) for a, b in zip(wide, detail, strict=True))
        frames.append(photo.resize((side, side), box=(left, top, left + window, top + window)))
    return frames
