"""Features by Daft as its documentation does it: download, decode, crop and resize as expressions, and the network as a class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.features import Network, as_files
from benchmarks.work import Batch, Job

PASSES = False
_PHOTOS = {32: 40_960, 64: 7_680, 224: 512}
"""Photos of a query by the side of a crop: more than a window takes, but few, for Daft ends a query that has begun."""


def batches(job: Job) -> Iterator[Batch]:
    """Endless batches."""
    import daft
    from daft import DataType, functions
    from daft.functions import crop, decode_image, download, image_height, image_width, resize

    @daft.cls(max_concurrency=job.workers)
    class Model:
        def __init__(self) -> None:
            self._network = Network(job)

        @daft.method.batch(return_dtype=DataType.tensor(DataType.float32()), batch_size=job.batch)
        def vectors(self, images: Any) -> Any:
            return list(self._network(np.stack(images.to_pylist())))

    def frame_of(paths: list[str]) -> Any:
        frame = daft.from_pydict({"path": paths}).into_batches(job.batch)
        frame = frame.select(decode_image(download(daft.col("path")), mode="RGB").alias("photo"))
        photo, width, height, side = (daft.col(name) for name in ("photo", "width", "height", "side"))
        frame = frame.with_columns({"width": image_width(photo).cast("int64"), "height": image_height(photo).cast("int64")})
        frame = frame.with_column("side", functions.when(width < height, width).otherwise(height))
        square = crop(photo, functions.to_list((width - side) // 2, (height - side) // 2, side, side))
        return frame.select(Model().vectors(resize(square, job.size, job.size)).alias("vector"))

    paths = as_files(job)
    while True:
        for part in frame_of(paths if job.center else (paths * 8)[: _PHOTOS[job.size]]).iter_partitions():
            yield {"vector": np.stack(part.to_pydict()["vector"])}
