"""The DALI engine: decode, crop, resize and every task as one fused graph, on the GPU or on the CPU.

The graph is the same on both devices; only `device=` differs. Every drawn number is fed in, so the graph itself holds no chance.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

import numpy as np

from pipeline.codec import quiet
from pipeline.engines.base import UNDECODABLE, Request, pixel_shapes
from pipeline.errors import RunError
from pipeline.tasks.base import Task

_DECODER = "decoders.image_slice"
_SAMPLE = re.compile(r"sample #(\d+)", re.IGNORECASE)


class DaliEngine:
    """One DALI pipeline that is fed a batch and asked for its outputs.

    Args:
        tasks: the recipe's tasks by name.
        size: side of the crop, pixels.
        threads: DALI's CPU threads.
        device_id: the GPU to use, or None for the CPU.
        batch: the most images in one run of the graph; larger requests go in parts.
    """

    name = "dali"

    def __init__(
        self, tasks: dict[str, Task], size: int, threads: int = 1, device_id: int | None = None, batch: int = 64
    ) -> None:
        quiet()
        self._shapes, self._device_id, self._batch = pixel_shapes(tasks, size), device_id, batch
        self._pipeline, self._drawn_inputs = build_graph(tasks, size, threads, batch, device_id, gpu=device_id is not None)
        self._pipeline.build()

    def run(self, request: Request) -> tuple[dict[str, np.ndarray], dict[int, str]]:
        columns = {name: np.zeros((len(request), *shape), np.uint8) for name, shape in self._shapes.items()}
        failures: dict[int, str] = {}
        for start in range(0, len(request), self._batch):
            self._part(request, np.arange(start, min(start + self._batch, len(request))), columns, failures)
        return columns, failures

    def _part(self, request: Request, rows: np.ndarray, columns: dict[str, np.ndarray], failures: dict[int, str]) -> None:
        """Render some rows into the columns; one that the decoder refuses is left out and the others are rendered again."""
        while len(rows):
            feed = self._feed(request.take(rows))
            for name, data in feed.items():
                self._pipeline.feed_input(name, data)
            try:
                outputs = self._pipeline.run()
            except RuntimeError as error:
                if _DECODER not in str(error):
                    raise RunError(f"DALI failed: {error}") from error
                named = _SAMPLE.search(str(error))
                if named:
                    failures[int(rows[int(named[1])])] = UNDECODABLE
                    rows = np.delete(rows, int(named[1]))
                elif len(rows) == 1:
                    failures[int(rows[0])] = f"the decoder refused it: {_cause(str(error))}"
                    return
                else:  # one of them is at fault: halve until it is alone
                    for half in np.array_split(rows, 2):
                        self._part(request, half, columns, failures)
                    return
                continue
            for column, output in zip(columns.values(), outputs):
                column[rows] = np.from_dlpack((output.as_cpu() if self._device_id is not None else output).as_tensor())
            return

    def _feed(self, part: Request) -> dict[str, Any]:
        feed: dict[str, Any] = {
            "encoded": [np.frombuffer(data, np.uint8) for data in part.encoded],
            "start": np.ascontiguousarray(part.windows[:, :2]),
            "shape": np.ascontiguousarray(part.windows[:, 2:]),
            "turn": part.turn,
            "across": part.mirror[:, 0].astype(np.int32),
            "down": part.mirror[:, 1].astype(np.int32),
        }
        for task, name in self._drawn_inputs:
            feed[f"{task}.{name}"] = np.ascontiguousarray(part.drawn[task][name], np.int32)
        return feed

    def identity(self) -> dict[str, str]:
        device = "cpu" if self._device_id is None else "gpu"
        return {"engine": self.name, "device": device, "nvidia-dali-cuda120": version("nvidia-dali-cuda120")}


def _cause(message: str) -> str:
    """What DALI says went wrong, without where in its own code and ours."""
    return message.partition("encountered:")[2].strip().partition("\n")[0] or message.strip().partition("\n")[0]


def build_graph(
    tasks: dict[str, Task], size: int, threads: int, batch: int, device_id: int | None, gpu: bool
) -> tuple[Any, list[tuple[str, str]]]:
    """Define the graph without building it.

    Args:
        gpu: whether operators run on the GPU; with no `device_id` such a graph cannot run, but serialising it checks it.

    Returns:
        The pipeline, and the (task, name) of each drawn array that it wants fed under the name `task.name`.
    """
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.pipeline import do_not_convert

    place = "gpu" if gpu else "cpu"
    wanted: list[tuple[str, str]] = []

    # Conditionals, so that the quarter turn is paid for by the few photos that were stored on their side.
    @pipeline_def(batch_size=batch, num_threads=threads, device_id=device_id, prefetch_queue_depth=1, enable_conditionals=True)
    def graph() -> tuple[Any, ...]:
        image = fn.decoders.image_slice(
            fn.external_source(name="encoded", dtype=types.UINT8, ndim=1, no_copy=True),
            start=fn.external_source(name="start", dtype=types.INT32),
            shape=fn.external_source(name="shape", dtype=types.INT32),
            axis_names="HW",
            device="mixed" if gpu else "cpu",
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,
        )
        image = fn.resize(image, size=[size, size], antialias=True)
        if fn.external_source(name="turn", dtype=types.BOOL):
            image = fn.rotate(image, angle=90, interp_type=types.INTERP_NN, keep_size=True, fill_value=0)
        across, down = (fn.external_source(name=name, dtype=types.INT32) for name in ("across", "down"))
        image = fn.flip(image, horizontal=across, vertical=down)
        return image, *do_not_convert(inputs)(image)

    def inputs(image: Any) -> list[Any]:
        rendered = []
        for name, task in tasks.items():
            drawn = _Drawn(name)
            rendered.append(task.render(DaliOps(size, place), image, drawn))
            wanted.extend((name, key) for key in drawn)
        return rendered

    return graph(), wanted


class _Drawn(dict[str, Any]):
    """Makes an input node for each drawn array at its first use, so that only what the graph needs is fed."""

    def __init__(self, task: str) -> None:
        super().__init__()
        self._task = task

    def __missing__(self, key: str) -> Any:
        from nvidia.dali import fn, types

        self[key] = fn.external_source(name=f"{self._task}.{key}", dtype=types.INT32)
        return self[key]


class DaliOps:
    """The vocabulary as graph nodes: images are HWC uint8 nodes. See `pipeline.engines.vocabulary.Ops`."""

    def __init__(self, size: int, device: str) -> None:
        from nvidia.dali import fn, types

        self.size, self._device, self._fn, self._types = size, device, fn, types

    def rotate90(self, image: Any, turns: Any) -> Any:
        angle = self._fn.cast(turns, dtype=self._types.FLOAT) * 90.0
        return self._fn.rotate(image, angle=angle, interp_type=self._types.INTERP_NN, keep_size=True, fill_value=0)

    def erase(self, image: Any, boxes: Any, fill: tuple[int, int, int]) -> Any:
        boxes = self._fn.cast(boxes, dtype=self._types.FLOAT)
        corner, extent = self._fn.reshape(boxes[:, 0:2], shape=[-1]), self._fn.reshape(boxes[:, 2:4], shape=[-1])
        return self._fn.erase(image, anchor=corner, shape=extent, axis_names="HW", fill_value=[float(v) for v in fill])

    def gray(self, image: Any) -> Any:
        return self._fn.color_space_conversion(image, image_type=self._types.RGB, output_type=self._types.GRAY)

    def drop_colour(self, image: Any, where: Any) -> Any:
        gray = self.gray(image)
        dropped = self._fn.cast(where, dtype=self._types.UINT8)
        kept = self._fn.cast(1 - dropped, dtype=self._types.UINT8)  # uint8, lest the sum be wider than that
        if self._device == "gpu":
            dropped, kept = dropped.gpu(), kept.gpu()
        return self._fn.cat(gray, gray, gray, axis=2) * dropped + image * kept

    def patches(self, image: Any, corners: Any, side: int, count: int) -> Any:
        cut = [self._fn.slice(image, start=corners[k], shape=[side, side], axis_names="HW") for k in range(count)]
        return self._fn.stack(*cut, axis=0)
