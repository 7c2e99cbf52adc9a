"""The engines' interface: requests, and the columns that engines return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pipeline.engines.vocabulary import Drawn, Renderable
from pipeline.images.unusual import Undecodable, UnusualImage

UNDECODABLE = "the image's data is damaged: it could not be decoded"
"""The reason that both engines give if a decoder fails."""


@dataclass
class ViewWindows:
    """The windows of a task that cuts its own: v from each of n samples.

    Args:
        windows: int32 (n, v, 4): top, left, height, width in the decoded region of the sample's first image.
        mirror: bool (n, v, 2): whether to mirror each view, after `Request.turn`, left to right, and top to bottom.
    """

    windows: np.ndarray
    mirror: np.ndarray

    def take(self, rows: np.ndarray) -> ViewWindows:
        """The same for some of the samples."""
        return ViewWindows(self.windows[rows], self.mirror[rows])


@dataclass
class Request:
    """A batch of n samples, whose m = n * frames images passed the header check, with everything that was drawn for them.

    Args:
        encoded: the files' bytes, a sample's frames one after the other.
        streams: the files' parsed code streams, or `UnusualImage`s, see `pipeline.images.check.Header`.
        windows: int32 (m, 4): top, left, height, width of the region to decode of each photo as it is stored, EXIF orientation
            ignored.
        turn: bool (m,): whether to turn the resized crop a quarter counter-clockwise.
        mirror: bool (m, 2): whether to mirror it then left to right, and top to bottom.
        drawn: the parameters that each task drew, by task name, n rows each.
        frames: images of each sample.
        crops: int32 (m, 4): each crop in the decoded region; None if it is the whole region.
        views: the windows of each task that cuts its own, by task name.
    """

    encoded: list[bytes | memoryview]
    streams: list[Any]
    windows: np.ndarray
    turn: np.ndarray
    mirror: np.ndarray
    drawn: dict[str, Drawn]
    frames: int = 1
    crops: np.ndarray | None = None
    views: dict[str, ViewWindows] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.encoded) // self.frames

    def take(self, rows: np.ndarray) -> Request:
        """The same for some of the samples."""
        drawn = {task: {name: value[rows] for name, value in values.items()} for task, values in self.drawn.items()}
        files = (rows[:, None] * self.frames + np.arange(self.frames)).reshape(-1)
        encoded, streams = [self.encoded[i] for i in files], [self.streams[i] for i in files]
        crops = None if self.crops is None else self.crops[files]
        views = {task: windows.take(rows) for task, windows in self.views.items()}
        windows, turn, mirror = self.windows[files], self.turn[files], self.mirror[files]
        return Request(encoded, streams, windows, turn, mirror, drawn, self.frames, crops, views)


def as_files(part: Request) -> dict[int, str]:
    """Replace the unusual images of a request by PNM files of their windows, which every decoder can read.

    Args:
        part: the request, which is changed in place; therefore a copy made by `take`.

    Returns:
        The reason for each of its samples that could not be decoded, by row.
    """
    failures: dict[int, str] = {}
    for i, stream in enumerate(part.streams):
        if isinstance(stream, UnusualImage):
            top, left, height, width = part.windows[i].tolist()
            try:
                part.encoded[i] = stream.window_as_pnm(top, left, height, width)
            except Undecodable as error:
                failures[i // part.frames] = str(error)
            part.windows[i, :2] = 0
    return failures


class Engine(Protocol):
    """Decodes, crops and renders the samples of a request; it draws and decides nothing itself.

    The pixels of a sample depend on that sample's own rows of the request only, not on the batch, its size or the threads.
    """

    name: str

    def run(self, request: Request) -> tuple[dict[str, Any], dict[int, str]]:
        """Render a batch.

        Returns:
            The columns of `pixel_shapes`, uint8, of n rows each, as numpy arrays, or as torch tensors if the engine leaves them
            on its GPU; and the reason for each row that could not be decoded, whose pixels are undefined.
        """

    def identity(self) -> dict[str, str]:
        """Name of the engine and versions of its libraries, on which the pixels depend besides the request."""


def with_views(tasks: Mapping[str, Renderable], size: int) -> dict[str, Renderable]:
    """The tasks that cut their own windows, by name."""
    return {name: task for name, task in tasks.items() if task.view_columns(size)}


def pixel_shapes(tasks: Mapping[str, Renderable], size: int, frames: int = 1, crop: bool = True) -> dict[str, tuple[int, ...]]:
    """The shape of one row of each pixel column, by the column's name.

    The columns are `image`, for clips `frames`, each `<task>.input`, and the other columns of tasks that cut their own windows.

    Args:
        tasks: the tasks by name.
        size: side of the crop, pixels.
        frames: images of each sample.
        crop: whether `image` and `frames` are included.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    if crop:
        shapes = {"image": (size, size, 3), **({"frames": (frames * size, size, 3)} if frames > 1 else {})}
    for name, task in tasks.items():
        views = task.view_columns(size)
        shapes |= {f"{name}.{column}": (count, side, side, 3) for column, (count, side) in views.items()}
        if not views:
            shapes[f"{name}.input"] = task.input_shape(size)
    return shapes
