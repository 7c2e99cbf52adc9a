"""The CPU engine: decodes a region, resizes it with antialiasing straight into the batch, and renders every task from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from pipeline.engines.base import Request, pixel_shapes, with_views
from pipeline.engines.cpu_ops import CpuOps
from pipeline.engines.decoding import WindowDecoder
from pipeline.engines.inputs import CACHED_BYTES, Threads, inputs_of
from pipeline.engines.reduced import ReducedDecoder
from pipeline.engines.resize import Resize
from pipeline.engines.vocabulary import Renderable
from pipeline.images.unusual import Undecodable, UnusualImage

_SMALL_BYTES, _TOGETHER_BYTES = 2**15, 2**22
"""Bytes of a region up to which images are decoded and resized together, since a call costs more than its work; and of those."""


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
        self._resize = Resize()
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
        each = max(1, min(CACHED_BYTES // most, -(-n // self._spread.count)))

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
