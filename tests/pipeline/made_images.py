"""Makes image files of every kind from a real photo, and decodes them with PIL for comparison."""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from skimage import data

from pipeline.draws import Draws
from pipeline.engines import Engine, Request, with_views
from pipeline.images.check import Header, check_header
from pipeline.rendering.windows import add_views, stored
from pipeline.tasks import Task, registry

WIDTH, HEIGHT = 180, 132


@cache
def photo(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A part of a photo of a face: colours, edges and smooth skin, and no two corners alike."""
    return Image.fromarray(data.astronaut()).crop((130, 20, 130 + width, 20 + height))


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    """The image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def turned(format: str, orientation: int, **options: Any) -> bytes:
    """A file of the photo with an EXIF orientation."""
    exif = Image.Exif()
    exif[274] = orientation
    return encode(photo(), format, exif=exif, **options)


def sixteen_bits() -> Image.Image:
    """The photo's brightness, stretched over 16 bits."""
    return Image.fromarray(np.asarray(photo().convert("L")).astype(np.uint16) * 257)


@cache
def good() -> dict[str, bytes]:
    """Files that can be decoded, by their special feature."""
    plain = photo()
    return {
        "jpeg": encode(plain, "JPEG", quality=92),
        "progressive": encode(plain, "JPEG", progressive=True),
        "full chroma": encode(plain, "JPEG", subsampling=0),
        "grey jpeg": encode(plain.convert("L"), "JPEG"),
        "cmyk jpeg": encode(plain.convert("CMYK"), "JPEG"),
        "png": encode(plain, "PNG"),
        "palette": encode(plain.convert("P"), "PNG"),
        "grey png": encode(plain.convert("L"), "PNG"),
        "16 bits": encode(sixteen_bits(), "PNG"),
        "alpha": encode(plain.convert("RGBA"), "PNG"),
        "bilevel": encode(plain.convert("1"), "PNG"),
        "animated png": encode(plain, "PNG", save_all=True, append_images=[plain.rotate(90)]),
        "webp": encode(plain, "WEBP"),
        "lossless webp": encode(plain, "WEBP", lossless=True),
        "animated webp": encode(plain, "WEBP", lossless=True, save_all=True, append_images=[plain.rotate(90)]),
        "tiff": encode(plain, "TIFF"),
        "lzw tiff": encode(plain, "TIFF", compression="tiff_lzw"),
        "pages": encode(plain, "TIFF", save_all=True, append_images=[plain.rotate(90)]),
        "bmp": encode(plain, "BMP"),
        "ppm": encode(plain, "PPM"),
        "one pixel": encode(plain.crop((90, 60, 91, 61)), "PNG"),
        "one pixel jpeg": encode(plain.crop((90, 60, 91, 61)), "JPEG"),
    }


def seen_by_pil(encoded: bytes) -> Image.Image:
    """The upright RGB image, as PIL decodes it."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded)))
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    return image.convert("RGB")


def request(
    encoded: list[bytes],
    windows: Any = None,
    mirror: Any = None,
    drawn: dict[str, dict[str, np.ndarray]] | None = None,
    frames: int = 1,
    views: Mapping[str, Task] | None = None,
    size: int = 48,
) -> Request:
    """A request for files that pass the header check; whole images, upright and unmirrored, unless said otherwise.

    Of the tasks `views` those that cut their own windows draw them, for the ids 0, 1, ...

    Of clips the files are the samples' frames after each other, and windows and mirror are of frames.
    """
    headers = [header for file in encoded if isinstance(header := check_header(file, 10**8), Header)]
    assert len(headers) == len(encoded)
    heights, widths, orientations = (
        np.array([getattr(h, side) for h in headers], int) for side in ("height", "width", "orientation")
    )
    whole = np.stack([0 * heights, 0 * heights, heights, widths], axis=1)
    upright = whole if windows is None else np.array(windows, np.int32)
    placed, turn, upend = stored(upright, heights, widths, orientations)
    if mirror is not None:
        upend[:, 0] ^= np.asarray(mirror, bool)
    made = Request(
        [header.encoded for header in headers], [header.stream for header in headers], placed, turn, upend, drawn or {}, frames
    )
    of = [values[::frames] for values in (heights, widths, orientations)]
    draws = Draws(1, 0, np.arange(len(made), dtype=np.uint64))
    if own := with_views(views or {}, size):
        add_views(made, {name: task.windows(draws.stream(name), *of[:2], size) for name, task in own.items()}, *of)
    return made


def engine(
    name: str, tasks: dict[str, Task] | None = None, size: int = 48, threads: int = 1, batch: int = 64, frames: int = 1
) -> Engine:
    """An engine on the CPU."""
    if name == "cpu":
        from pipeline.engines.cpu import CpuEngine

        return CpuEngine(tasks or {}, size, threads)
    from pipeline.engines.dali import DaliEngine

    return DaliEngine(tasks or {}, size, threads, batch=batch, frames=frames)


def by_cpu_ops(task: Task, image: np.ndarray, drawn: dict[str, np.ndarray]) -> np.ndarray:
    """A task's input from decoded crops, uint8 (n, size, size, 3), or (n, frames * size, size, 3)."""
    from pipeline.engines.cpu_ops import CpuOps

    return task.render(CpuOps(image.shape[2]), image, drawn)


FRAMES = max(task.frames for task in registry().values())
"""As many as any task looks at."""


def of_one_image() -> dict[str, type[Task]]:
    """The registered tasks that need only single images, and no labels but those that are drawn."""
    given = {name for name, task in registry().items() if task.learns_classes or "annotation" in task.model_fields}
    return {name: task for name, task in registry().items() if task.frames == 1 and name not in given}


def unlike(tasks: Mapping[str, type[Task]]) -> dict[str, type[Task]]:
    """Some tasks without most of those that cut their own windows: one code makes all of these."""
    return {name: task for name, task in tasks.items() if name in ("simclr", "swav") or not task().view_columns(48)}


def clip(step: int = 6, frames: int = FRAMES, **options: Any) -> list[bytes]:
    """The frames of a clip as PNGs: crops of the photo, each further to the right by `step` pixels."""
    whole = photo(WIDTH + step * frames, HEIGHT)
    return [encode(whole.crop((step * k, 0, step * k + WIDTH, HEIGHT)), "PNG", **options) for k in range(frames)]
