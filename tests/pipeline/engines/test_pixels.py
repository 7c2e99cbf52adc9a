"""Decode, crop and resize: the CPU engine gives PIL's pixels within a fraction of a level, and DALI the CPU engine's."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.engines import Engine
from tests.pipeline.made_images import encode, engine, good, photo, request, seen_by_pil, turned

# Levels of 255, mean and greatest difference over a crop; measured 0.004 and 1 for the CPU engine.
CPU_TO_PIL = (0.01, 1)
# A photo that lies on its side is resized before it is turned, so its rows and columns are rounded in the other order.
ASIDE_TO_PIL = (0.3, 1)
# DALI's rounding differs: measured 0.18 and 1. On the crop's outermost pixels its filter repeats the edge where the others leave
# it out: up to 10 levels where a photo is shrunk to 24 pixels, 16 where dots of black and white are.
DALI_TO_CPU = (0.25, 1)
DALI_TO_CPU_AT_THE_EDGE = 24
# The palette of a TIFF has 16 bits; PIL rounds it otherwise.
PALETTE_TIFF = (0.8, 2)

WINDOW = (13, 21, 97, 120)


@pytest.fixture(scope="module", params=[24, 64, 224])
def both(request: pytest.FixtureRequest) -> tuple[Engine, Engine, int]:
    size = request.param
    return engine("cpu", size=size), engine("dali", size=size), size


def by_pil(encoded: bytes, window: tuple[int, int, int, int], size: int) -> np.ndarray:
    top, left, height, width = window
    crop = seen_by_pil(encoded).crop((left, top, left + width, top + height))
    return np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR))


def apart(a: np.ndarray, b: np.ndarray) -> tuple[float, int]:
    difference = np.abs(a.astype(int) - b)
    return float(difference.mean()), int(difference.max())


def within(found: tuple[float, int], bounds: tuple[float, int]) -> bool:
    return found[0] <= bounds[0] and found[1] <= bounds[1]


def dali_agrees(dali: np.ndarray, cpu: np.ndarray) -> bool:
    inner = within(apart(dali[1:-1, 1:-1], cpu[1:-1, 1:-1]), DALI_TO_CPU)
    return inner and apart(dali, cpu)[1] <= DALI_TO_CPU_AT_THE_EDGE


@pytest.mark.parametrize("name", good())
def test_every_kind_of_file_gives_the_pixels_of_pil(name: str, both: tuple[Engine, Engine, int]) -> None:
    cpu, dali, size = both
    encoded = good()[name]
    window = (0, 0, 1, 1) if "one pixel" in name else WINDOW
    asked = request([encoded], [window])
    pixels, failed = cpu.run(asked)
    assert not failed
    assert pixels["image"].dtype == np.uint8
    assert pixels["image"].shape == (1, size, size, 3)
    assert within(apart(pixels["image"][0], by_pil(encoded, window, size)), CPU_TO_PIL)
    others, failed = dali.run(asked)
    assert not failed
    assert others["image"].dtype == np.uint8
    assert dali_agrees(others["image"][0], pixels["image"][0])


def test_a_tiff_with_a_palette_is_rounded_a_little_otherwise(both: tuple[Engine, Engine, int]) -> None:
    encoded = encode(photo().convert("P"), "TIFF")
    asked = request([encoded], [WINDOW])
    pixels = both[0].run(asked)[0]["image"][0]
    assert within(apart(pixels, by_pil(encoded, WINDOW, both[2])), PALETTE_TIFF)
    assert dali_agrees(both[1].run(asked)[0]["image"][0], pixels)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_crop_is_cut_from_the_upright_photo(format: str, mirrored: bool, both: tuple[Engine, Engine, int]) -> None:
    cpu, dali, size = both
    files = [turned(format, orientation) for orientation in range(1, 9)]
    window = (13, 21, 60, 70)
    asked = request(files, [window] * 8, [mirrored] * 8)
    expected = np.stack([by_pil(file, window, size) for file in files])
    expected = expected[:, :, ::-1] if mirrored else expected
    pixels, others = cpu.run(asked)[0]["image"], dali.run(asked)[0]["image"]
    for i in range(8):
        assert within(apart(pixels[i], expected[i]), CPU_TO_PIL if i < 4 else ASIDE_TO_PIL), i + 1
        assert dali_agrees(others[i], pixels[i]), i + 1


@pytest.mark.parametrize("name", ["cpu", "dali"])
def test_a_region_of_a_jpeg_is_what_the_whole_photo_shows_there(name: str) -> None:
    """Decoding a part must not change the JPEG blocks that lie across the window's edges."""
    size = 40
    encoded = good()["jpeg"]
    for window in [(0, 0, size, size), (7, 9, size, size), (132 - size, 180 - size, size, size), (50, 0, size, size)]:
        pixels, _ = engine(name, size=size).run(request([encoded], [window]))
        assert apart(pixels["image"][0], by_pil(encoded, window, size)) <= (0.02, 1)


def test_enlarging_and_shrinking_by_much_stay_close(both: tuple[Engine, Engine, int]) -> None:
    cpu, dali, size = both
    large = encode(photo().resize((1800, 1320), Image.Resampling.BICUBIC), "PNG")
    for encoded, window in [(large, (0, 0, 1320, 1800)), (good()["png"], (60, 90, 3, 5)), (good()["png"], (0, 0, 132, 1))]:
        asked = request([encoded], [window])
        pixels = cpu.run(asked)[0]["image"][0]
        assert within(apart(pixels, by_pil(encoded, window, size)), CPU_TO_PIL)
        assert dali_agrees(dali.run(asked)[0]["image"][0], pixels)


def test_without_torch_s_inner_kernel_the_pixels_are_the_same() -> None:
    """The resize uses an internal function of torch; where that is missing, the public one is used."""
    machine = engine("cpu", size=56)
    files = [good()["jpeg"], good()["png"]]
    asked = request(files, [WINDOW, (0, 0, 20, 30)], [False, True])
    expected = machine.run(asked)[0]["image"]
    assert machine._resize._kernel is not None  # type: ignore[attr-defined]
    machine._resize._kernel = None  # type: ignore[attr-defined]
    assert np.array_equal(machine.run(asked)[0]["image"], expected)
