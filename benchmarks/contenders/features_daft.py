"""Features by Daft as its documentation does it: download, decode, crop and resize as expressions, and the network as a class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.features import Network, as_files
from benchmarks.work import Batch, Job

PASSES = False
_TIMES = 40


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

    daft.set_runner_native()
    paths = as_files(job) * (1 if job.center else _TIMES)
    frame = daft.from_pydict({"path": paths})
    frame = frame.select(decode_image(download(daft.col("path")), mode="RGB").alias("photo"))
    width, height = image_width(daft.col("photo")).cast(DataType.int64()), image_height(daft.col("photo")).cast(DataType.int64())
    frame = frame.with_columns({"width": width, "height": height})
    side = functions.when(daft.col("width") < daft.col("height"), daft.col("width")).otherwise(daft.col("height"))
    frame = frame.with_column("side", side)
    left, top = ((daft.col(name) - daft.col("side")) // 2 for name in ("width", "height"))
    square = crop(daft.col("photo"), functions.to_list(left, top, daft.col("side"), daft.col("side")))
    frame = frame.select(Model().vectors(resize(square, job.size, job.size)).alias("vector"))
    for part in frame.iter_partitions():
        vectors = part.to_pydict()["vector"]
        for start in range(0, len(vectors), job.batch):
            yield {"vector": np.stack(vectors[start : start + job.batch])}
