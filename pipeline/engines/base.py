"""What both engines are given and what they give back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pipeline.engines.vocabulary import Drawn, Renderable
from pipeline.images.unusual import Undecodable, UnusualImage

UNDECODABLE = "the image's data is damaged: it could not be decoded"
"""The reason both engines give where a decoder fails."""


@dataclass
class ViewWindows:
    """The windows of one task that cuts its own, v of each of n samples.

    Args:
        windows: int32 (n, v, 4): top, left, height, width in what is decoded of the sample's first image.
        mirror: bool (n, v, 2): mirror each view, upright by `Request.turn`, left and right, and top and bottom.
    """

    windows: np.ndarray
    mirror: np.ndarray

    def take(self, rows: np.ndarray) -> ViewWindows:
        """The same for some of the samples."""
        return ViewWindows(self.windows[rows], self.mirror[rows])


@dataclass
class Request:
    """n samples whose m = n * frames images passed the header check, and all that was drawn for them.

    Args:
        encoded: the files' bytes, a sample's frames after each other.
        streams: their parsed code streams, or `UnusualImage`s, see `pipeline.images.check.Header`.
        windows: int32 (m, 4): top, left, height, width of what is decoded of each photo as it is stored, EXIF orientation
            ignored.
        turn: bool (m,): turn the resized crop a quarter counter-clockwise.
        mirror: bool (m, 2): then mirror it left and right, and top and bottom.
        drawn: what each task drew, by task name, n rows each.
        frames: images of each sample.
        crops: int32 (m, 4): each crop in what is decoded; None where they are the same.
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
    """Put the windows of unusual images into a request as files that every decoder knows.

    Args:
        part: a request of its own (`take`), which is changed.

    Returns:
        The reason for each sample of it that could not be decoded.
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
    """Decodes, crops and renders; decides nothing.

    The pixels of a sample depend on that sample's own rows of the request only, not on the batch, its size or the threads.
    """

    name: str

    def run(self, request: Request) -> tuple[dict[str, Any], dict[int, str]]:
        """Render a batch.

        Returns:
            The columns of `pixel_shapes`, uint8, of n rows each, as numpy arrays, or as torch tensors where the engine was
            told to leave them on its GPU; and, for each row that could not be decoded, the reason. The pixels of such a row
            mean nothing.
        """

    def identity(self) -> dict[str, str]:
        """Engine and library versions: what the pixels depend on besides the request."""


def with_views(tasks: Mapping[str, Renderable], size: int) -> dict[str, Renderable]:
    """Those tasks that cut their own windows."""
    return {name: task for name, task in tasks.items() if task.view_columns(size)}


def pixel_shapes(tasks: Mapping[str, Renderable], size: int, frames: int = 1, crop: bool = True) -> dict[str, tuple[int, ...]]:
    """Names of the pixel columns with the shape of one row.

    They are `image`, of clips `frames`, each `<task>.input`, and the other columns of tasks that cut their own windows.

    Args:
        tasks: by name.
        size: side of the crop, pixels.
        frames: images of each sample.
        crop: whether `image` and `frames` are among them.
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
