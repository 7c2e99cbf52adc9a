"""Clips without a video: a window that glides over a photo, in two equal steps, as a camera that pans."""

from __future__ import annotations

import io
import random
from pathlib import Path

from PIL import Image

from benchmarks.photos import files_of, jpeg
from pipeline.shards.pack import pack

_A_PHOTO = 40
_SHARE = 0.5
"""Side of the window, as a share of the photo's shorter side."""
_STEPS = (0.15, 0.3)
"""Least and greatest step between frames, as shares of the window's side."""


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
            for frame, image in enumerate(_pan(photo, side, rng)):
                (part / f"{number:05d}-{clip:02d}.{frame}.jpg").write_bytes(jpeg(image))
    for name in ("train", "test"):
        pack(str(folder / "photos" / name), str(folder / name), labels="none", clips=True)
    return str(folder / "train"), str(folder / "test")


def _pan(photo: Image.Image, side: int, rng: random.Random) -> list[Image.Image]:
    """Three frames along a straight line whose middle, length and direction are drawn."""
    window = _SHARE * min(photo.size)
    most = [min(_STEPS[1] * window, (length - window) / 2) for length in photo.size]
    step = [rng.choice((-1, 1)) * rng.uniform(_STEPS[0] * window, far) for far in most]
    centre = [
        rng.uniform(window / 2 + abs(by), length - window / 2 - abs(by)) for by, length in zip(step, photo.size, strict=True)
    ]
    frames = []
    for t in (-1, 0, 1):
        left, top = (middle + t * by - window / 2 for middle, by in zip(centre, step, strict=True))
        frames.append(photo.resize((side, side), box=(left, top, left + window, top + window)))
    return frames
