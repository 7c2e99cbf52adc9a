"""Masks and boxes stay on their pixels, whatever the orientation of the photo, its window, its mirroring and the engine."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.draws import sample_id
from pipeline.recipe import parse_recipe
from pipeline.rendering.renderer import Pairs, Renderer
from pipeline.shards.corpus import Sample
from pipeline.targets import BoxTarget, MaskTarget, Target
from pipeline.targets.boxes import boxes_json
from tests.pipeline.made_images import encode

HEIGHT, WIDTH, BLOCK, SIZE, LEVEL = 96, 132, 12, 48, 85
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How a photo is stored so that it is upright after each orientation."""


def stored(upright: np.ndarray, orientation: int) -> bytes:
    """A JPEG of grey levels (h, w) with that orientation."""
    image, exif = Image.fromarray(upright).convert("RGB"), Image.Exif()
    exif[274], turn = orientation, STORED[orientation]
    return encode(image if turn is None else image.transpose(turn), "JPEG", quality=95, subsampling=0, exif=exif)


def rendered(target: Target, engine: str, photos: list[tuple[np.ndarray, bytes]], center: bool = False) -> Pairs:
    """Render photos of all orientations in turn, each with the file of its target."""
    recipe = parse_recipe(
        {"name": "t", "seed": 5, "corpus": {"shards": "-"}, "image": {"size": SIZE, "scale": [0.3, 1]}, "engine": engine}
    )
    samples = [
        Sample(str(i), sample_id(str(i)), stored(upright, 1 + i % 8), "jpg", -1, None, target=body)
        for i, (upright, body) in enumerate(photos)
    ]
    return Renderer(recipe, center=center, target=target)([target.asked(sample) for sample in samples], 0)


@pytest.mark.parametrize("engine", ["cpu", "dali"])
def test_a_mask_shows_what_its_pixels_show(engine: str) -> None:
    random = np.random.Generator(np.random.Philox(2))
    photos = []
    for _ in range(16):
        numbers = random.integers(0, 4, (HEIGHT // BLOCK, WIDTH // BLOCK), np.uint8).repeat(BLOCK, 0).repeat(BLOCK, 1)
        photos.append((numbers * LEVEL, encode(Image.fromarray(numbers), "PNG")))
    columns = rendered(MaskTarget({0: 0, 1: 1, 2: 2, 3: 3}), engine, photos).columns
    assert columns["weight"].all()
    seen, mask = columns["image"][..., 0].astype(int), columns["mask"].astype(int)
    flat = abs(seen - LEVEL * np.rint(seen / LEVEL)) < 10  # elsewhere the resize has mixed two blocks
    assert flat.mean() > 0.7
    assert (np.rint(seen / LEVEL) == mask)[flat].mean() > 0.98
    for i in range(16):
        assert (np.rint(seen[i] / LEVEL) == mask[i])[flat[i]].mean() > 0.95, i


def bright_boxes() -> list[tuple[tuple[np.ndarray, bytes], list[int]]]:
    """Sixteen dark photos with one bright box, each with its target's file, and the box: left, top, width, height."""
    random, found = np.random.Generator(np.random.Philox(4)), []
    for _ in range(16):
        left, top = random.integers(0, WIDTH - 40), random.integers(0, HEIGHT - 40)
        across, down = random.integers(24, 40, 2)
        upright = np.zeros((HEIGHT, WIDTH), np.uint8)
        upright[top : top + down, left : left + across] = 255
        box = [int(left), int(top), int(across), int(down)]
        found.append(((upright, boxes_json(HEIGHT, WIDTH, [{"bbox": box, "category_id": 7}])), box))
    return found


@pytest.mark.parametrize("engine", ["cpu", "dali"])
def test_a_box_is_where_its_object_is(engine: str) -> None:
    photos = [photo for photo, _ in bright_boxes()]
    columns = rendered(BoxTarget({7: 2}, most=3), engine, photos).columns
    assert columns["weight"].all()
    shown = 0
    for image, boxes, classes in zip(columns["image"][..., 0], columns["boxes"], columns["box_class"]):
        bright = image > 127
        rows, across = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
        if classes[0] < 0:
            assert min(len(rows), len(across)) <= 1
            continue
        assert classes.tolist() == [2, -1, -1]
        np.testing.assert_allclose(boxes[0], [across[0], rows[0], across[-1] + 1, rows[-1] + 1], atol=1.1)
        shown += 1
    assert shown > 10


@pytest.mark.parametrize("engine", ["cpu", "dali"])
def test_tests_show_the_whole_photo_with_all_of_its_boxes(engine: str) -> None:
    made = bright_boxes()
    columns = rendered(BoxTarget({7: 2}, most=3), engine, [photo for photo, _ in made], center=True).columns
    for image, boxes, (_, (left, top, across, down)) in zip(columns["image"][..., 0], columns["boxes"], made):
        wanted = np.array([left, top, left + across, top + down]) * np.tile([SIZE / WIDTH, SIZE / HEIGHT], 2)
        np.testing.assert_allclose(boxes[0], wanted, atol=1e-4)
        rows, columns_of = np.flatnonzero((image > 127).any(axis=1)), np.flatnonzero((image > 127).any(axis=0))
        np.testing.assert_allclose(wanted, [columns_of[0], rows[0], columns_of[-1] + 1, rows[-1] + 1], atol=1.1)


def test_a_bad_target_is_a_failure_of_its_sample_alone() -> None:
    upright = np.full((HEIGHT, WIDTH), 200, np.uint8)
    good, wrong = encode(Image.new("L", (WIDTH, HEIGHT), 1), "PNG"), encode(Image.new("L", (WIDTH, HEIGHT), 9), "PNG")
    made = rendered(MaskTarget({1: 0}), "cpu", [(upright, good), (upright, wrong), (upright, b""), (upright, good)])
    assert made.columns["weight"].tolist() == [1, 0, 0, 1]
    assert set(made.failures) == {1, 2}
    assert "number 9" in made.failures[1]
    assert made.failures[2] == "it has no seg.png"
    assert not made.columns["mask"][[0, 3]].any()
    assert (made.columns["mask"][1:3] == 255).all()
    assert not made.columns["image"][1:3].any()
