"""The DALI engine: decodes, crops, resizes and renders all tasks in one fused graph, on the GPU or on the CPU.

The graph is the same on both devices; only `device=` differs. Every drawn number is an input, so the graph itself draws nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

from pipeline.draws import Draws
from pipeline.engines.base import UNDECODABLE, Request, as_files, pixel_shapes
from pipeline.engines.noise_field import normal_field
from pipeline.engines.output_buffers import DeviceBuffers, HostBuffers
from pipeline.engines.vocabulary import BRIGHTNESS, Drawn, Renderable
from pipeline.errors import RunError
from pipeline.images.codec import quiet

_DECODER = "decoders.image_slice"
_SAMPLE = re.compile(r"sample #(\d+)", re.IGNORECASE)


class DaliEngine:
    """Renders batches by one DALI pipeline.

    Args:
        tasks: the recipe's tasks by name.
        size: side of the crop, pixels.
        threads: DALI's CPU threads.
        device_id: the GPU to use, or None for the CPU.
        batch: greatest number of images in one run of the graph; larger requests are split.
        stay: whether to leave the pixels on that device, as torch tensors.
        frames: images of each sample.
        crop: whether to make the crop that tasks share.
    """

    name = "dali"

    def __init__(
        self,
        tasks: Mapping[str, Renderable],
        size: int,
        threads: int = 1,
        device_id: int | None = None,
        batch: int = 64,
        stay: bool = False,
        frames: int = 1,
        crop: bool = True,
    ) -> None:
        quiet()
        self._shapes, self._device_id, self._batch = pixel_shapes(tasks, size, frames, crop), device_id, batch
        self._crop = crop
        gpu = device_id is not None
        self._pipeline, self._drawn_inputs = build_graph(tasks, size, threads, batch, device_id, gpu, frames, crop)
        self._pipeline.build()
        self._buffers = DeviceBuffers(device_id) if stay else HostBuffers()

    def run(self, request: Request) -> tuple[dict[str, Any], dict[int, str]]:
        columns = self._buffers.make(self._shapes, len(request))
        failures: dict[int, str] = {}
        for start in range(0, len(request), self._batch):
            self._part(request, np.arange(start, min(start + self._batch, len(request))), columns, failures)
        return columns, failures

    def _part(self, request: Request, rows: np.ndarray, columns: dict[str, Any], failures: dict[int, str]) -> None:
        """Render some rows into the columns; a row that cannot be decoded is left out, and the others are rendered again."""
        while len(rows):
            part = request.take(rows)
            if broken := as_files(part):
                failures |= {int(rows[i]): reason for i, reason in broken.items()}
                rows = np.delete(rows, list(broken))
                continue
            feed = self._feed(part)
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
                else:  # one of them is damaged: halve the rows until it is alone
                    for half in np.array_split(rows, 2):
                        self._part(request, half, columns, failures)
                    return
                continue
            self._buffers.put(columns, rows, outputs)
            return

    def _feed(self, part: Request) -> dict[str, Any]:
        feed: dict[str, Any] = {}
        for frame in range(part.frames):
            of = slice(frame, None, part.frames)
            feed |= {
                f"encoded.{frame}": [np.frombuffer(data, np.uint8) for data in part.encoded[of]],
                f"start.{frame}": np.ascontiguousarray(part.windows[of, :2]),
                f"shape.{frame}": np.ascontiguousarray(part.windows[of, 2:]),
                f"turn.{frame}": np.ascontiguousarray(part.turn[of]),
            }
            if self._crop:
                feed |= {
                    f"across.{frame}": part.mirror[of, 0].astype(np.int32),
                    f"down.{frame}": part.mirror[of, 1].astype(np.int32),
                }
            if self._crop and part.crops is not None:
                feed[f"crop.{frame}"] = np.ascontiguousarray(part.crops[of])
        for task, views in part.views.items():
            feed |= {f"{task}.view.windows": views.windows, f"{task}.view.mirror": views.mirror.astype(np.int32)}
        for task, name in self._drawn_inputs:
            values = part.drawn[task][name]
            feed[f"{task}.{name}"] = np.ascontiguousarray(values, _fed_as(values))
        return feed

    def identity(self) -> dict[str, str]:
        device = "cpu" if self._device_id is None else "gpu"
        return {"engine": self.name, "device": device, "nvidia-dali-cuda120": version("nvidia-dali-cuda120")}


def _cause(message: str) -> str:
    """The cause in DALI's message, without the places in its code and ours."""
    return message.partition("encountered:")[2].strip().partition("\n")[0] or message.strip().partition("\n")[0]


def build_graph(
    tasks: Mapping[str, Renderable],
    size: int,
    threads: int,
    batch: int,
    device_id: int | None,
    gpu: bool,
    frames: int = 1,
    crop: bool = True,
) -> tuple[Any, list[tuple[str, str]]]:
    """Define the graph without building it.

    Args:
        gpu: whether operators run on the GPU; without a `device_id` such a graph cannot run, but serialising it checks it.
        frames: images of each sample; the other arguments as in `DaliEngine`.
        crop: whether to make the crop that tasks share.

    Returns:
        The pipeline, and the (task, name) of each drawn array that is its input `task.name`.
    """
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.pipeline import do_not_convert

    place = "gpu" if gpu else "cpu"
    wanted: list[tuple[str, str]] = []
    views = {name: columns for name, task in tasks.items() if (columns := task.view_columns(size))}

    # Conditionals, so that only the few photos that were stored on their side cost the time of a quarter turn.
    @pipeline_def(batch_size=batch, num_threads=threads, device_id=device_id, prefetch_queue_depth=1, enable_conditionals=True)
    def graph() -> tuple[Any, ...]:
        photos = [decoded(frame) for frame in range(frames if crop else 1)]
        turns = [fn.external_source(name=f"turn.{frame}", dtype=types.BOOL) for frame in range(len(photos))]
        crops = [cropped(photos[frame], turns[frame], frame) for frame in range(frames if crop else 0)]
        windows = {name: windows_of(name, photos[0], turns[0]) for name in views}
        return *do_not_convert(strips)(crops), *do_not_convert(inputs)(crops, windows)

    def decoded(frame: int) -> Any:
        return fn.decoders.image_slice(
            fn.external_source(name=f"encoded.{frame}", dtype=types.UINT8, ndim=1, no_copy=True),
            start=fn.external_source(name=f"start.{frame}", dtype=types.INT32),
            shape=fn.external_source(name=f"shape.{frame}", dtype=types.INT32),
            axis_names="HW",
            device="mixed" if gpu else "cpu",
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,
        )

    def cropped(photo: Any, turn: Any, frame: int) -> Any:
        if views:
            box = fn.external_source(name=f"crop.{frame}", dtype=types.INT32)
            photo = fn.slice(photo, start=box[0:2], shape=box[2:4], axis_names="HW")
        across, down = (fn.external_source(name=f"{name}.{frame}", dtype=types.INT32) for name in ("across", "down"))
        return upright(photo, size, turn, across, down)

    def windows_of(name: str, photo: Any, turn: Any) -> list[Any]:
        boxes, mirror = (fn.external_source(name=f"{name}.view.{what}", dtype=types.INT32) for what in ("windows", "mirror"))
        sides = [side for count, side in views[name].values() for _ in range(count)]
        cut = [fn.slice(photo, start=boxes[k, 0:2], shape=boxes[k, 2:4], axis_names="HW") for k in range(len(sides))]
        return [upright(cut[k], sides[k], turn, mirror[k, 0], mirror[k, 1]) for k in range(len(sides))]

    def upright(window: Any, side: int, turn: Any, across: Any, down: Any) -> Any:
        image = fn.resize(window, size=[side, side], antialias=True)
        if turn:
            image = fn.rotate(image, angle=90, interp_type=types.INTERP_NN, keep_size=True, fill_value=0)
        return fn.flip(image, horizontal=across, vertical=down)

    def below(crops: list[Any]) -> Any:
        return crops[0] if len(crops) == 1 else fn.cat(*crops, axis=0)

    def strips(crops: list[Any]) -> list[Any]:
        return [*crops[:1], *([below(crops)] if len(crops) > 1 else [])]

    def inputs(crops: list[Any], windows: dict[str, list[Any]]) -> list[Any]:
        rendered = []
        for name, task in tasks.items():
            drawn = _Drawn(name, task.draw(Draws(0, 0, np.zeros(1, np.uint64)).stream(name), size))
            if name in views:
                images = [
                    task.render(DaliOps(side, place), windows[name][k], _OfView(drawn, k))
                    for k, side in enumerate(side for count, side in views[name].values() for _ in range(count))
                ]
                for count, _ in views[name].values():
                    rendered.append(fn.stack(*images[:count], axis=0))
                    images = images[count:]
            else:
                rendered.append(task.render(DaliOps(size, place), below(crops[: task.frames]), drawn))
            wanted.extend((name, key) for key in drawn)
        return rendered

    return graph(), wanted


class _Drawn(dict[str, Any]):
    """Makes an input node for each drawn array when it is first used, so that only the arrays that the graph needs are fed."""

    def __init__(self, task: str, example: Drawn) -> None:
        super().__init__()
        self._task, self._example = task, example

    def __missing__(self, key: str) -> Any:
        from nvidia.dali import fn, types

        dali = {np.int32: types.INT32, np.float32: types.FLOAT, np.uint8: types.UINT8}[_fed_as(self._example[key])]
        self[key] = fn.external_source(name=f"{self._task}.{key}", dtype=dali)
        return self[key]


class _OfView(dict[str, Any]):
    """The drawn parameters of one view."""

    def __init__(self, drawn: _Drawn, number: int) -> None:
        super().__init__()
        self._drawn, self._number = drawn, number

    def __missing__(self, key: str) -> Any:
        return self._drawn[key][self._number]


def _fed_as(values: np.ndarray) -> type[np.generic]:
    """The type in which drawn values enter the graph: uint8 for masks, which are large; 32 bits for other numbers."""
    if values.dtype == np.uint8:
        return np.uint8
    return np.float32 if values.dtype.kind == "f" else np.int32


class DaliOps:
    """The operations as graph nodes: images are HWC uint8 nodes. See `pipeline.engines.vocabulary.Ops`."""

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
        dropped = self._here(self._uint8(where))
        kept = self._uint8(1 - dropped)  # uint8, so that the sum is uint8, too
        return self._fn.cat(gray, gray, gray, axis=2) * dropped + image * kept

    def patches(self, image: Any, corners: Any, side: int, count: int) -> Any:
        cut = [self._fn.slice(image, start=corners[k], shape=[side, side], axis_names="HW") for k in range(count)]
        return self._fn.stack(*cut, axis=0)

    def noise(self, image: Any, corners: Any, gain: Any, level: Any) -> Any:
        from nvidia.dali import math

        field = self._types.Constant(normal_field(self.size), device=self._device)
        shape = self._fn.slice(image.shape(dtype=self._types.INT32), start=[0], shape=[2], axes=[0])
        cuts = [self._fn.slice(field, start=corners[k], shape=shape, axes=[0, 1]) for k in range(2)]
        pixels = self._fn.cast(image, dtype=self._types.FLOAT)
        deviation = math.sqrt(pixels * self._here(gain) + self._here(level * level)) * np.float32(0.5**0.5)
        return self._fn.reinterpret(self._uint8(pixels + (cuts[0] + cuts[1]) * deviation), layout="HWC")

    def blur(self, image: Any, sigma: Any) -> Any:
        from nvidia.dali import math

        window = 2 * self._fn.cast(math.ceil(sigma * 3.0), dtype=self._types.INT32) + 1
        return self._fn.gaussian_blur(image, sigma=sigma, window_size=window)

    def recolour(self, image: Any, matrix: Any) -> Any:
        return self._fn.coord_transform(image, MT=matrix, dtype=self._types.UINT8)

    def reduce(self, image: Any, factor: int) -> Any:
        small = self.size // factor
        squares = self._fn.reshape(image, shape=[small, factor, small, factor, 3])
        exact = self._fn.reductions.sum(squares, axes=[1, 3], dtype=self._types.FLOAT)
        total = self._fn.cast(exact, dtype=self._types.INT32)
        return self._fn.reinterpret(self._uint8((total + factor**2 // 2) // factor**2), layout="HWC")

    def affine(self, image: Any, matrix: Any, side: int) -> Any:
        return self._fn.warp_affine(
            image, matrix=matrix, size=[side, side], inverse_map=True, interp_type=self._types.INTERP_LINEAR
        )

    def jitter(self, image: Any, matrix: Any, of_mean: Any) -> Any:
        shares = self._types.Constant(np.array(BRIGHTNESS, np.float32), device=self._device)
        mean = self._fn.reductions.sum(self._fn.reductions.mean(image, axes=[0, 1]) * shares)
        changed = self._fn.coord_transform(image, M=matrix, dtype=self._types.FLOAT)
        return self._fn.reinterpret(self._uint8(changed + self._here(of_mean) * mean), layout="HWC")

    def solarise(self, image: Any, threshold: Any) -> Any:
        bright = self._uint8(image >= self._here(threshold))
        return self._uint8(255 - image) * bright + image * self._uint8(1 - bright)

    def paste(self, image: Any, other: Any, mask: Any) -> Any:
        inside = self._fn.reshape(self._here(mask), shape=[self.size, self.size, 1], layout="HWC")
        return other * inside + image * self._uint8(1 - inside)

    def _uint8(self, values: Any) -> Any:
        return self._fn.cast(values, dtype=self._types.UINT8)

    def _here(self, values: Any) -> Any:
        """Move drawn values, which are fed on the CPU, to the device of the pixels."""
        return values.gpu() if self._device == "gpu" else values
