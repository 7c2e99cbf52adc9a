"""DALI alone, in one process: `readers.webdataset`, a random crop inside the decoder, and every task in the same graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.peers import FILL, GRAY, box, corners
from benchmarks.work import RATIO, SCALE, TASKS, Batch, Job

PASSES = True


def batches(job: Job) -> Iterator[Batch]:
    """Endless batches."""
    from nvidia.dali import fn, pipeline_def, types

    names: list[str] = []
    size = job.size

    @pipeline_def(batch_size=job.batch, num_threads=job.workers, device_id=None, prefetch_queue_depth=2, seed=1)
    def graph() -> tuple[Any, ...]:
        encoded = fn.readers.webdataset(paths=list(job.shards), ext=["jpg"], missing_component_behavior="error")
        if job.center:
            image = fn.decoders.image(encoded, device="cpu")
            whole = fn.cast(fn.peek_image_shape(encoded)[:2], dtype=types.INT32)
            side = fn.reductions.min(whole)
            image = fn.slice(image, start=(whole - side) // 2, shape=fn.stack(side, side), axis_names="HW")
        else:
            image = fn.decoders.image_random_crop(encoded, device="cpu", random_area=SCALE, random_aspect_ratio=RATIO)
        image = fn.resize(image, size=[size, size], antialias=True)
        if not job.center:
            image = fn.flip(image, horizontal=fn.random.coin_flip())
        made: dict[str, Any] = {} if job.tasks else {"image": image}
        if {"occlusion", "colorization"} & set(job.tasks):
            made["image"] = image
        if "rotation" in job.tasks:
            turns = fn.random.uniform(values=[0.0, 1.0, 2.0, 3.0])
            kept = {"interp_type": types.INTERP_NN, "keep_size": True, "fill_value": 0}
            made["rotation.input"] = fn.rotate(image, angle=turns * 90.0, **kept)
            made["rotation.label"] = fn.cast(turns, dtype=types.INT64)
        if "jigsaw" in job.tasks:
            label, cut = fn.external_source(_jigsaws(size), num_outputs=2, batch=False, dtype=[types.INT64, types.INT32])
            gray = fn.color_space_conversion(image, image_type=types.RGB, output_type=types.GRAY)
            lost = fn.cast(fn.random.coin_flip(probability=GRAY), dtype=types.UINT8)
            source = fn.cat(gray, gray, gray, axis=2) * lost + image * fn.cast(1 - lost, dtype=types.UINT8)
            _, side, _ = corners(size)
            patches = [fn.slice(source, start=cut[k], shape=[side, side], axis_names="HW") for k in range(9)]
            made |= {"jigsaw.input": fn.stack(*patches, axis=0), "jigsaw.label": label}
        if "occlusion" in job.tasks:
            corner, extent = fn.external_source(_boxes(size), num_outputs=2, batch=False, dtype=types.FLOAT)
            fill = [float(v) for v in FILL]
            made["occlusion.input"] = fn.erase(image, anchor=corner, shape=extent, axis_names="HW", fill_value=fill)
            blank = types.Constant(np.zeros((size, size, 1), np.uint8), device="cpu", layout="HWC")
            made["occlusion.mask"] = fn.erase(blank, anchor=corner, shape=extent, axis_names="HW", fill_value=1.0)
        if "colorization" in job.tasks:
            made["colorization.input"] = fn.color_space_conversion(image, image_type=types.RGB, output_type=types.GRAY)
        names.extend(made)
        return tuple(made.values())

    assert set(job.tasks) <= set(TASKS)
    pipeline = graph()
    pipeline.build()
    while True:
        outputs = pipeline.run()
        # The pipeline's own buffers hold until the next run only.
        yield {name: np.from_dlpack(output.as_tensor()).copy() for name, output in zip(names, outputs)}


def _jigsaws(size: int) -> Any:
    def draw(_: Any) -> tuple[np.ndarray, np.ndarray]:
        label, _side, cut = corners(size)
        return np.array(label, np.int64), np.array(cut, np.int32)

    return draw


def _boxes(size: int) -> Any:
    def draw(_: Any) -> tuple[np.ndarray, np.ndarray]:
        y, x, h, w = box(size)
        return np.array([y, x], np.float32), np.array([h, w], np.float32)

    return draw
