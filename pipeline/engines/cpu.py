"""The CPU engine: decodes a region, resizes it with antialiasing straight into the batch, and renders by OpenCV and numpy."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from pipeline.engines.base import Request, pixel_shapes, with_views
from pipeline.engines.decoding import WindowDecoder
from pipeline.engines.noise_field import normal_field
from pipeline.engines.reduced import ReducedDecoder
from pipeline.engines.vocabulary import BRIGHTNESS, Drawn, Renderable
from pipeline.images.unusual import Undecodable, UnusualImage

_CACHED_BYTES = 2**20
"""Bytes of crops that a thread renders at a time, so that they stay in a core's second-level cache."""

_SMALL_BYTES, _TOGETHER_BYTES = 2**15, 2**22
"""Bytes of a region up to which images are decoded and resized together, since a call costs more than its work; and of those."""


class Threads:
    """Distributes the rows of a batch, or parts of it, over threads."""

    def __init__(self, threads: int) -> None:
        self.count = threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def __call__(self, rows: int, work: Callable[[int, int], None]) -> None:
        """Call `work(row, thread)` for each row; each thread has a contiguous part of the rows."""
        if self._pool is None:
            for row in range(rows):
                work(row, 0)
            return

        def part(thread: int) -> None:
            for row in range(rows * thread // self.count, rows * (thread + 1) // self.count):
                work(row, thread)

        list(self._pool.map(part, range(self.count)))


def inputs_of(
    tasks: Mapping[str, Renderable], image: np.ndarray, drawn: Mapping[str, Drawn], threads: Threads
) -> dict[str, np.ndarray]:
    """Render the inputs of all tasks from crops: all tasks of a few crops at a time, which stay in the processor's cache.

    Args:
        tasks: the tasks by name.
        image: the crops, uint8 (n, s, s, 3), or those of each sample's frames below each other, (n, frames * s, s, 3).
        drawn: the parameters that each task drew, by its name.
        threads: the threads to use.

    Returns:
        A column `<task>.input`, uint8, for each task that does not cut its own windows.
    """
    n, size = len(image), image.shape[2]
    ops, tasks = CpuOps(size), {name: task for name, task in tasks.items() if not task.view_columns(size)}
    columns = {name: np.empty((n, *task.input_shape(size)), np.uint8) for name, task in tasks.items()}
    each = max(1, min(_CACHED_BYTES // math.prod(image.shape[1:]), -(-n // threads.count)))

    def make(part: int, _: int) -> None:
        rows = slice(part * each, (part + 1) * each)
        for name, task in tasks.items():
            of_task = {key: value[rows] for key, value in drawn[name].items()}
            columns[name][rows] = task.render(ops, image[rows, : task.frames * size], of_task)

    threads(-(-n // each), make)
    return {f"{name}.input": column for name, column in columns.items()}


class CpuEngine:
    """nvimgcodec decodes only the crop's window; torch's antialiased bilinear kernel resizes it, as PIL would.

    Args:
        tasks: the recipe's tasks by name.
        size: side of the crop, pixels.
        threads: how many images are rendered at once.
        reduced: decode a JPEG at 1/2, 1/4 or 1/8 of its size if its windows stay at least as large as their crops and views.
        crop: whether to make the crop that tasks share.
    """

    name = "cpu"

    def __init__(
        self, tasks: Mapping[str, Renderable], size: int, threads: int = 1, reduced: bool = False, crop: bool = True
    ) -> None:
        self._tasks, self._size, self._crop = tasks, size, crop
        self._views = [view for name, task in tasks.items() for view in _views(name, task, size)]
        self._decoders = [WindowDecoder() for _ in range(threads)]
        self._resize = _Resize()
        self._reduced = [ReducedDecoder() for _ in range(threads)] if reduced else None
        self._spread = Threads(threads)

    def run(self, request: Request) -> tuple[dict[str, np.ndarray], dict[int, str]]:
        n, size = len(request), self._size
        shapes = pixel_shapes(with_views(self._tasks, size), size, crop=False)
        views = {name: np.empty((n, *shape), np.uint8) for name, shape in shapes.items()}
        image = np.empty((len(request.encoded) if self._crop else 0, size, size, 3), np.uint8)
        failures: dict[int, str] = {}

        def cut(file: int, thread: int) -> None:
            sample, frame = divmod(file, request.frames)
            try:
                photo = self._decode(request, file, thread)
            except Undecodable as error:
                failures[sample] = str(error)
                return
            turn = bool(request.turn[file])
            if self._crop:
                crop = photo.cut(None if request.crops is None else request.crops[file])
                self._resize(crop, turn, request.mirror[file], image[file])
            for view in self._views if frame == 0 else ():
                of_task = request.views[view.name]
                window = photo.cut(of_task.windows[sample, view.number])
                self._resize(window, turn, of_task.mirror[sample, view.number], views[view.column][sample, view.place])

        if (together := self._together(request)) > 1:
            parts = -(-len(image) // together)
            self._spread(parts, lambda part, thread: self._cut_small(request, part * together, together, thread, image, failures))
        else:
            self._spread(len(request.encoded), cut)
        columns = {}
        if self._crop:
            below = image.reshape(n, request.frames * size, size, 3)
            columns = {"image": below[:, :size], **({"frames": below} if request.frames > 1 else {})}
            columns |= inputs_of(self._tasks, below, request.drawn, self._spread)
        self._change(views, request)
        return {**columns, **views}, failures

    def _change(self, views: dict[str, np.ndarray], request: Request) -> None:
        """Render the views by the parameters drawn for them, a few samples at a time."""
        n, most = len(request), max((math.prod(column.shape[1:]) for column in views.values()), default=1)
        each = max(1, min(_CACHED_BYTES // most, -(-n // self._spread.count)))

        def change(part: int, _: int) -> None:
            rows = slice(part * each, (part + 1) * each)
            for view in self._views:
                drawn = {key: value[rows, view.number] for key, value in request.drawn[view.name].items()}
                pixels = views[view.column][rows, view.place]
                pixels[:] = view.task.render(CpuOps(pixels.shape[1]), pixels, drawn)

        if views:
            self._spread(-(-n // each), change)

    def _together(self, request: Request) -> int:
        """How many files are decoded, and then resized, by one call: many if all are small, else one."""
        files, most = len(request.encoded), 3 * int(request.windows[:, 2:].prod(axis=1).max(initial=1))
        if self._reduced is not None or self._views or most > _SMALL_BYTES:
            return 1
        return max(1, min(_TOGETHER_BYTES // most, -(-files // self._spread.count)))

    def _cut_small(
        self, request: Request, start: int, count: int, thread: int, image: np.ndarray, failures: dict[int, str]
    ) -> None:
        """Make the crops of some small files, to the same pixels as one by one."""
        part = slice(start, start + count)
        found = self._decoders[thread].many(request.streams[part], request.windows[part].tolist())
        failures |= {(start + i) // request.frames: one for i, one in enumerate(found) if isinstance(one, str)}
        self._resize.many(found, request.turn[part], request.mirror[part], image[part])

    def _decode(self, request: Request, file: int, thread: int) -> _Photo:
        window, stream = request.windows[file].tolist(), request.streams[file]
        if self._reduced is not None and not isinstance(stream, UnusualImage):
            reduced = self._reduced[thread](request.encoded[file], stream, self._room(request, file))
            if reduced is not None:
                pixels, factor = reduced
                return _Photo(pixels, factor, (window[0], window[1]), window[2:])
        return _Photo(self._decoders[thread](stream, window), 1, (0, 0), window[2:])

    def _room(self, request: Request, file: int) -> float:
        """Greatest factor of reduction: the least ratio of a window's shorter side to the side of its crop or view."""
        sample, frame = divmod(file, request.frames)
        room = [min((request.windows if request.crops is None else request.crops)[file, 2:]) / self._size] if self._crop else []
        for view in self._views if frame == 0 else ():
            room.append(min(request.views[view.name].windows[sample, view.number, 2:]) / view.side)
        return min(room)

    def identity(self) -> dict[str, str]:
        packages = ["nvidia-nvimgcodec-cu12", "torch", "opencv-python-headless", *(["simplejpeg"] if self._reduced else [])]
        return {"engine": self.name, **{package: version(package) for package in packages}}


@dataclass(frozen=True)
class _View:
    """One view of a task that cuts its own windows.

    Args:
        name: the task's name in the recipe.
        task: the task.
        number: its number among all views of the task.
        column: the column of the batch in which it lies.
        place: its place in that column.
        side: its side, pixels.
    """

    name: str
    task: Renderable
    number: int
    column: str
    place: int
    side: int


def _views(name: str, task: Renderable, size: int) -> list[_View]:
    found: list[_View] = []
    for column, (count, side) in task.view_columns(size).items():
        found += [_View(name, task, len(found) + i, f"{name}.{column}", i, side) for i in range(count)]
    return found


@dataclass(frozen=True)
class _Photo:
    """The decoded pixels of a file, which contain the region of all its windows.

    Args:
        pixels: uint8 (h, w, 3).
        factor: factor by which the pixels are reduced.
        start: row and column of the region's first pixel, in unreduced pixels.
        extent: the region's height and width, in unreduced pixels.
    """

    pixels: np.ndarray
    factor: int
    start: tuple[int, int]
    extent: list[int]

    def cut(self, box: np.ndarray | None) -> np.ndarray:
        """Copy the pixels of a window of the region; None for the whole region."""
        top, left, height, width = (0, 0, *self.extent) if box is None else box.tolist()
        place = (self.start[0] + top, self.start[1] + left, height, width)
        top, left, height, width = (round(number / self.factor) for number in place)
        return np.ascontiguousarray(self.pixels[top : top + height, left : left + width])


class _Resize:
    """Resizes an HWC uint8 array into a square HWC uint8 array, bilinearly with antialiasing, without a copy in between."""

    def __init__(self) -> None:
        import cv2
        import torch

        self._torch, self._cv2 = torch, cv2
        # The public function returns a planar tensor, whose later use as HWC costs a strided copy; the kernel behind it can write
        # into a given tensor. Its name is internal, hence the fallback, which gives the same pixels.
        self._kernel = getattr(getattr(torch.ops.aten, "_upsample_bilinear2d_aa", None), "out", None)

    def __call__(self, source: np.ndarray, turn: bool, mirror: np.ndarray, target: np.ndarray) -> None:
        """Resize a window, then turn it a quarter counter-clockwise and mirror it (left to right, top to bottom)."""
        self._resized(source[None], target[None])
        self._oriented(target, turn, mirror)

    def _oriented(self, target: np.ndarray, turn: bool, mirror: np.ndarray) -> None:
        if turn:
            target[:] = np.rot90(target)  # numpy copies what overlaps
        across, down = mirror.tolist()
        if across or down:
            self._cv2.flip(target, {(True, False): 1, (False, True): 0, (True, True): -1}[across, down], dst=target)

    def many(self, sources: Sequence[np.ndarray | str], turn: np.ndarray, mirror: np.ndarray, targets: np.ndarray) -> None:
        """Do the same for n small windows: those of one size are resized by one call.

        Args:
            sources: the windows; strings are left out.
            turn: bool (n,), whether to turn each.
            mirror: bool (n, 2), how to mirror each.
            targets: uint8 (n, s, s, 3), which is written.
        """
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for row, source in enumerate(sources):
            if not isinstance(source, str):
                alike[source.shape].append(row)
        for rows in alike.values():
            made = np.empty((len(rows), *targets.shape[1:]), np.uint8)
            self._resized(np.stack([sources[row] for row in rows]), made)
            targets[rows] = made
        for row in np.flatnonzero(turn | mirror.any(axis=1)).tolist():
            self._oriented(targets[row], bool(turn[row]), mirror[row])

    def _resized(self, sources: np.ndarray, targets: np.ndarray) -> None:
        size = list(targets.shape[1:3])
        planar = self._torch.from_numpy(sources).permute(0, 3, 1, 2)
        if self._kernel is not None:
            self._kernel(planar, size, False, None, None, out=self._torch.from_numpy(targets).permute(0, 3, 1, 2))
        else:
            made = self._torch.nn.functional.interpolate(planar, size, mode="bilinear", antialias=True)
            targets[:] = made.permute(0, 2, 3, 1).numpy()


class CpuOps:
    """The operations on batches of numpy arrays: images are uint8 (n, h, w, 3). See `pipeline.engines.vocabulary.Ops`."""

    def __init__(self, size: int) -> None:
        import cv2

        self.size, self._cv2 = size, cv2

    def rotate90(self, image: np.ndarray, turns: np.ndarray) -> np.ndarray:
        out = np.empty_like(image)
        codes = {1: self._cv2.ROTATE_90_COUNTERCLOCKWISE, 2: self._cv2.ROTATE_180, 3: self._cv2.ROTATE_90_CLOCKWISE}

        for row, count in enumerate(turns.tolist()):
            if count % 4:
                self._cv2.rotate(image[row], codes[count % 4], dst=out[row])
            else:
                out[row] = image[row]
        return out

    def erase(self, image: np.ndarray, boxes: np.ndarray, fill: tuple[int, int, int]) -> np.ndarray:
        out = image.copy()
        for row, of_row in enumerate(boxes.tolist()):
            for top, left, height, width in of_row:
                self._cv2.rectangle(out[row], (left, top, width, height), fill, self._cv2.FILLED)
        return out

    def gray(self, image: np.ndarray) -> np.ndarray:
        out = np.empty((*image.shape[:3], 1), np.uint8)
        for row in range(len(image)):
            self._cv2.cvtColor(image[row], self._cv2.COLOR_RGB2GRAY, dst=out[row, :, :, 0])
        return out

    def drop_colour(self, image: np.ndarray, where: np.ndarray) -> np.ndarray:
        out = image.copy()
        for row in np.flatnonzero(where):
            brightness = self._cv2.cvtColor(image[row], self._cv2.COLOR_RGB2GRAY)
            self._cv2.cvtColor(brightness, self._cv2.COLOR_GRAY2RGB, dst=out[row])
        return out

    def patches(self, image: np.ndarray, corners: np.ndarray, side: int, count: int) -> np.ndarray:
        out = np.empty((len(corners), count, side, side, 3), np.uint8)
        for row, of_row in enumerate(corners.tolist()):
            for k, (top, left) in enumerate(of_row):
                out[row, k] = image[row, top : top + side, left : left + side]
        return out

    def noise(self, image: np.ndarray, corners: np.ndarray, gain: np.ndarray, level: np.ndarray) -> np.ndarray:
        out, field = np.empty_like(image), normal_field(self.size)
        (height, width), places = image.shape[1:3], corners.tolist()

        for row in range(len(image)):
            slope, floor = np.float32(gain[row]), np.float32(level[row])
            if not (slope or floor):
                out[row] = image[row]
                continue
            (top, left), (top2, left2) = places[row]
            noise = field[top : top + height, left : left + width] + field[top2 : top2 + height, left2 : left2 + width]
            pixels = image[row].astype(np.float32)
            noise *= np.float32(0.5**0.5) * (np.sqrt(pixels * slope + floor * floor) if slope else floor)
            noise += pixels
            np.rint(noise, out=noise)
            np.clip(noise, 0, 255, out=noise)
            out[row] = noise
        return out

    def blur(self, image: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        out = np.empty_like(image)

        for row in range(len(image)):
            if width := float(sigma[row]):
                window = 2 * math.ceil(3 * np.float32(width)) + 1
                pixels = image[row].astype(np.float32)  # in float: for uint8 OpenCV sums in fixed point, up to two levels off
                pixels = self._cv2.GaussianBlur(pixels, (window, window), width, borderType=self._cv2.BORDER_REFLECT_101)
                out[row] = np.rint(pixels)
            else:
                out[row] = image[row]
        return out

    def recolour(self, image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        out, matrix = np.empty_like(image), matrix.astype(np.float32)

        for row in range(len(image)):  # in float: for uint8 OpenCV sums in fixed point, often a level off
            out[row] = np.clip(np.rint(self._cv2.transform(image[row].astype(np.float32), matrix[row])), 0, 255)
        return out

    def reduce(self, image: np.ndarray, factor: int) -> np.ndarray:
        total = np.full(
            (len(image), image.shape[1] // factor, image.shape[2] // factor, 3),
            factor**2 // 2,
            np.uint16 if factor <= 16 else np.uint32,
        )
        for y in range(factor):
            for x in range(factor):
                total += image[:, y::factor, x::factor]
        return (total // factor**2).astype(np.uint8)

    def affine(self, image: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
        out = np.empty((len(image), side, side, 3), np.uint8)
        centres = matrix.astype(np.float64)  # OpenCV's coordinates start at the first pixel's centre
        centres[:, :, 2] += centres[:, :, :2].sum(axis=2) * 0.5 - 0.5
        flags = self._cv2.INTER_LINEAR | self._cv2.WARP_INVERSE_MAP

        for row in range(len(image)):
            self._cv2.warpAffine(
                image[row], centres[row], (side, side), dst=out[row], flags=flags, borderMode=self._cv2.BORDER_REPLICATE
            )
        return out

    def jitter(self, image: np.ndarray, matrix: np.ndarray, of_mean: np.ndarray) -> np.ndarray:
        out, pixels, matrix = np.empty_like(image), np.empty(image.shape[1:], np.float32), matrix.astype(np.float32)

        for row in range(len(image)):  # in float, as in `recolour`
            if not of_mean[row] and (matrix[row] == np.eye(3)).all():
                out[row] = image[row]
                continue
            shift = of_mean[row] * np.dot(self._cv2.mean(image[row])[:3], BRIGHTNESS)
            pixels[:] = image[row]
            changed = self._cv2.transform(pixels, np.column_stack([matrix[row], np.full(3, shift, np.float32)]))
            self._cv2.add(changed, 0, dst=out[row], dtype=self._cv2.CV_8U)  # type: ignore[call-overload]  # rounds and clips
        return out

    def solarise(self, image: np.ndarray, threshold: np.ndarray) -> np.ndarray:
        out, values = image.copy(), np.arange(256)
        for row in np.flatnonzero(threshold < 256):
            table = np.where(values >= threshold[row], 255 - values, values).astype(np.uint8)
            self._cv2.LUT(image[row], table, dst=out[row])
        return out

    def paste(self, image: np.ndarray, other: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.where(mask[..., None].astype(bool), other, image)
