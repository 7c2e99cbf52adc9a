"""PNGs that this project writes itself: other readers find every pixel."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.materialize.png import encode_png, png_identity


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.sampled_from([2, 30, 256]), st.integers(0, 2**32 - 1))
def test_pillow_and_opencv_read_every_pixel(height: int, width: int, channels: int, levels: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, levels, (height, width, channels)).astype(np.uint8)
    data = encode_png(pixels)
    with Image.open(io.BytesIO(data)) as image:
        image.verify()  # checksums of all chunks
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == {1: "L", 3: "RGB"}[channels]
        assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)
    read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED).reshape(pixels.shape)
    assert np.array_equal(read[:, :, ::-1], pixels)


@pytest.fixture
def small_stacks() -> Iterator[None]:
    before = threading.stack_size(2**19)
    yield
    threading.stack_size(before)


@pytest.mark.usefixtures("small_stacks")
def test_the_bytes_do_not_depend_on_where_the_stack_lies(photos: Path) -> None:
    """With ISA-L's level 1 about twelve of these differ: it takes the stack's address for a part of the picture."""
    with Image.open(next(photos.rglob("*.png"))) as photo:
        smooth = np.asarray(photo.convert("L"))[:32, :32, None]
    pictures, stacks = [smooth.copy() for _ in range(60)], 400
    different: list[int] = []
    for step, picture in enumerate(pictures, start=1):  # a first row that is one byte again and again once it is filtered
        for column in range(32):
            picture[0, column] = step + (picture[0, column - 1] // 2 if column else 0)
    expected = [encode_png(picture) for picture in pictures]
    all_there = threading.Barrier(stacks)  # so that no two threads have the same stack

    def compare() -> None:
        all_there.wait()
        different.extend(n for n, picture in enumerate(pictures) if encode_png(picture) != expected[n])

    threads = [threading.Thread(target=compare) for _ in range(stacks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert different == []


def test_photos_become_about_as_small_as_by_zlib(photos: Path) -> None:
    photo = cv2.imread(str(next(photos.rglob("*.png"))))
    assert len(encode_png(photo)) < 1.15 * len(cv2.imencode(".png", photo, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1])


def test_the_identity_changes_with_the_compressor(monkeypatch: pytest.MonkeyPatch) -> None:
    before = png_identity()
    png_identity.cache_clear()
    monkeypatch.setattr("pipeline.materialize.png._LEVEL", 0)
    assert png_identity() != before
    png_identity.cache_clear()
