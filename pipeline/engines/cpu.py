"""The CPU engine: region decoding, an antialiased resize straight into the batch, and OpenCV or numpy for the rest."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version

import numpy as np

from pipeline.codec import cpu_decoder, nvimgcodec
from pipeline.engines.base import UNDECODABLE, Request
from pipeline.tasks.base import Task

Spread = Callable[[Callable[[int, int], None]], None]
"""Does `work(row, thread)` for every row of a batch."""


class CpuEngine:
    """nvimgcodec decodes only the crop's window; torch's antialiased bilinear kernel resizes it, as PIL would.

    Args:
        tasks: the recipe's tasks by name.
        size: side of the crop, pixels.
        threads: how many images are worked on at once.
    """

    name = "cpu"

    def __init__(self, tasks: dict[str, Task], size: int, threads: int = 1) -> None:
        import cv2

        codec = nvimgcodec()
        self._tasks, self._size, self._cv2 = tasks, size, cv2
        self._decoders = [cpu_decoder(1) for _ in range(threads)]
        self._params = codec.DecodeParams(apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB)
        self._resize = _Resize(size)
        self._aside = [np.empty((size, size, 3), np.uint8) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def run(self, request: Request) -> tuple[dict[str, np.ndarray], dict[int, str]]:
        image = np.zeros((len(request), self._size, self._size, 3), np.uint8)
        failures: dict[int, str] = {}

        def crop(row: int, thread: int) -> None:
            window, (across, down) = self._decode(request, row, thread), request.mirror[row].tolist()
            if window is None:
                failures[row] = UNDECODABLE
            elif not (across or down or request.turn[row]):
                self._resize(window, image[row])
            else:
                aside = self._aside[thread]
                self._resize(window, aside)
                image[row] = np.rot90(aside) if request.turn[row] else aside
                if across or down:
                    self._cv2.flip(
                        image[row], {(True, False): 1, (False, True): 0, (True, True): -1}[across, down], dst=image[row]
                    )

        spread = partial(self._spread, len(request))
        spread(crop)
        ops = CpuOps(self._size, spread)
        columns = {"image": image}
        for name, task in self._tasks.items():
            columns[f"{name}.input"] = task.render(ops, image, request.drawn[name])
        return columns, failures

    def _decode(self, request: Request, row: int, thread: int) -> np.ndarray | None:
        top, left, height, width = request.windows[row].tolist()
        region = request.streams[row].get_sub_code_stream(region=nvimgcodec().Region(top, left, top + height, left + width))
        decoded = self._decoders[thread].decode(region, params=self._params)
        return None if decoded is None else np.asarray(decoded)

    def _spread(self, rows: int, work: Callable[[int, int], None]) -> None:
        """A contiguous part of the rows on each thread."""
        if self._pool is None:
            for row in range(rows):
                work(row, 0)
            return

        def part(thread: int) -> None:
            for row in range(rows * thread // len(self._decoders), rows * (thread + 1) // len(self._decoders)):
                work(row, thread)

        list(self._pool.map(part, range(len(self._decoders))))

    def identity(self) -> dict[str, str]:
        packages = ("nvidia-nvimgcodec-cu12", "torch", "opencv-python-headless")
        return {"engine": self.name, **{package: version(package) for package in packages}}


class _Resize:
    """Antialiased bilinear resize of an HWC uint8 array into a square HWC uint8 array, without a copy on the way."""

    def __init__(self, size: int) -> None:
        import torch

        self._torch, self._size = torch, [size, size]
        # The public function returns a planar tensor, whose later use as HWC costs a strided copy; this kernel behind it writes
        # where it is told. It is an internal name, hence the fallback, which gives the same pixels.
        self._kernel = getattr(getattr(torch.ops.aten, "_upsample_bilinear2d_aa", None), "out", None)

    def __call__(self, source: np.ndarray, target: np.ndarray) -> None:
        planar = self._torch.from_numpy(source).permute(2, 0, 1)[None]
        if self._kernel is not None:
            out = self._torch.from_numpy(target).permute(2, 0, 1)[None]
            self._kernel(planar, self._size, False, None, None, out=out)
        else:
            resized = self._torch.nn.functional.interpolate(planar, self._size, mode="bilinear", antialias=True)
            target[:] = resized[0].permute(1, 2, 0).numpy()


class CpuOps:
    """The vocabulary on batches: images are uint8 (n, h, w, 3). See `pipeline.engines.vocabulary.Ops`."""

    def __init__(self, size: int, spread: Spread) -> None:
        import cv2

        self.size, self._spread, self._cv2 = size, spread, cv2

    def rotate90(self, image: np.ndarray, turns: np.ndarray) -> np.ndarray:
        out = np.empty_like(image)
        codes = {1: self._cv2.ROTATE_90_COUNTERCLOCKWISE, 2: self._cv2.ROTATE_180, 3: self._cv2.ROTATE_90_CLOCKWISE}

        def turn(row: int, _: int) -> None:
            if code := int(turns[row]) % 4:
                self._cv2.rotate(image[row], codes[code], dst=out[row])
            else:
                out[row] = image[row]

        self._spread(turn)
        return out

    def erase(self, image: np.ndarray, boxes: np.ndarray, fill: tuple[int, int, int]) -> np.ndarray:
        out, colour = image.copy(), np.array(fill, np.uint8)
        for row, of_row in enumerate(boxes.tolist()):
            for top, left, height, width in of_row:
                out[row, top : top + height, left : left + width] = colour
        return out

    def gray(self, image: np.ndarray) -> np.ndarray:
        out = np.empty((*image.shape[:3], 1), np.uint8)
        self._spread(lambda row, _: self._cv2.cvtColor(image[row], self._cv2.COLOR_RGB2GRAY, dst=out[row, :, :, 0]))
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
