"""Compares lossless forms in which rendered pairs could be stored, by size and processor time.

    python -m benchmarks.encoders PHOTOS [--count 64] [--rounds 3]

PHOTOS is a folder or tar of JPEGs. Every pixel column and mask of four tasks at 224 pixels is encoded and decoded again, one
image after another on one thread; encoders take turns, in rounds. JPEG XL and QOI are measured if `imagecodecs` is installed.
"""

from __future__ import annotations

import argparse
import io
import statistics
import struct
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import islice
from typing import Any

import numpy as np

from benchmarks.contenders.ours import recipe_of
from benchmarks.photos import files_of
from benchmarks.work import TASKS, Job
from pipeline.draws import sample_id
from pipeline.materialize.columns import decode, encoder, stored_columns
from pipeline.recipe.outputs import Render
from pipeline.rendering.renderer import Renderer
from pipeline.shards.corpus import Sample

Encode = Callable[[np.ndarray], bytes]
Decode = Callable[[bytes], Any]


def rows_of(photos: list[bytes]) -> list[np.ndarray]:
    """What is stored of the photos: uint8 (h, w, 3) or (h, w, 1) each, a task's patches below each other, masks as 0 and 255."""
    recipe = recipe_of(Job(("unused",), 224, TASKS))
    samples = [Sample(str(i), sample_id(str(i)), photo, "jpg", -1, None) for i, photo in enumerate(photos)]
    columns = Renderer(recipe)(samples, 0).columns
    found = []
    for column in stored_columns(recipe):
        if column.kind == "pixels":
            found += [row.reshape(-1, *row.shape[-2:]) for row in columns[column.name]]
        elif column.kind == "mask":
            found += list((columns[column.name] != 0).astype(np.uint8)[..., None] * np.uint8(255))
    return found


def forms() -> dict[str, tuple[Encode, Decode]]:
    """Pairs of functions by the name of the form."""
    import cv2
    import pyarrow as pa

    column = next(one for one in stored_columns(recipe_of(Job(("unused",), 224, TASKS))) if one.name == "image")

    def opencv(*options: int) -> Encode:
        def encode(row: np.ndarray) -> bytes:
            shown = row if row.shape[2] == 1 else cv2.cvtColor(row, cv2.COLOR_RGB2BGR)
            return bytes(cv2.imencode(".png", shown, options)[1])

        return encode

    def pillow(form: str, **options: Any) -> Encode:
        from PIL import Image

        def encode(row: np.ndarray) -> bytes:
            buffer = io.BytesIO()
            Image.fromarray(row if row.shape[2] == 3 else row[:, :, 0]).save(buffer, form, **options)
            return buffer.getvalue()

        return encode

    def read(data: bytes) -> Any:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)

    zstd = pa.Codec("zstd", 1)
    run_lengths = (cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)
    found: dict[str, tuple[Encode, Decode]] = {
        "`png`": (encoder(column, Render(image="png")), read),
        "PNG by OpenCV, run lengths": (opencv(*run_lengths), read),
        "PNG by Pillow, level 1": (pillow("png", compress_level=1), read),
        "`webp`": (encoder(column, Render(image="webp")), read),
        "WebP lossless, method 1": (pillow("webp", lossless=True, quality=0, method=1), read),
        "`npy`": (encoder(column, Render(image="npy")), lambda data: np.load(io.BytesIO(data))),
        "`format: parquet`, Zstandard": (
            lambda row: struct.pack("<I", row.nbytes) + zstd.compress(row.tobytes(), asbytes=True),
            lambda data: zstd.decompress(data[4:], *struct.unpack("<I", data[:4])),
        ),
    }
    if find_spec("imagecodecs"):
        import imagecodecs as codecs

        found["JPEG XL, effort 1"] = (
            lambda row: bytes(codecs.jpegxl_encode(row.squeeze(), lossless=True, effort=1, numthreads=1)),
            lambda data: codecs.jpegxl_decode(data, numthreads=1),
        )
        found["QOI"] = (lambda row: bytes(codecs.qoi_encode(np.broadcast_to(row, (*row.shape[:2], 3)))), codecs.qoi_decode)
    assert np.array_equal(decode(column, found["`png`"][0](np.zeros(column.shape, np.uint8))), np.zeros(column.shape))
    return found


def main() -> None:
    """Measure."""
    import cv2
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="folder or tar of JPEGs")
    parser.add_argument("--count", type=int, default=64, help="photos")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    photos = list(islice(files_of(given.photos), given.count))
    rows, ways = rows_of(photos), forms()
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    sizes = {}
    for _ in range(given.rounds):
        for name, (encode, read) in ways.items():
            started = time.process_time()
            files = [encode(row) for row in rows]
            written = time.process_time()
            for file in files:
                read(file)
            spent[name].append((written - started, time.process_time() - written))
            sizes[name] = sum(map(len, files))
    raw = sum(row.nbytes for row in rows)
    print("| form | kB a photo | of the pixels | to write, ms | to read, ms |\n| --- | ---: | ---: | ---: | ---: |")
    for name, size in sizes.items():
        write, back = (1000 * statistics.median(times) / len(photos) for times in zip(*spent[name], strict=True))
        print(f"| {name} | {size / len(photos) / 1000:.0f} | {size / raw:.2f} | {write:.2f} | {back:.2f} |")


if __name__ == "__main__":
    main()
