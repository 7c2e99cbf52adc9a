"""Pictures of an evaluation: small files that show confusions, the most wrong photos and a map of the features."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from skimage import data

from cluster.pictures.findings import confused_words, confusion_matrix, feature_map, wrong_photos


def pictures(classes: int, wrong: int = 3) -> dict[str, np.ndarray]:
    """What an evaluation of so many classes leaves, the first of which is always taken for the second."""
    rng = np.random.default_rng(0)
    confusion = 10 * np.eye(classes, dtype=np.int64)
    confusion[0, :2] = 0, 40
    labels = rng.integers(0, classes, 2000)
    return {
        "classes": np.array([f"class {i}" for i in range(classes)]),
        "about": np.array(["pretrained", "linear", "layer4"]),
        "confusion": confusion,
        "wrong": np.stack([data.astronaut()[40 * i : 40 * i + 32, :32] for i in range(wrong)]),
        "wrong_true": np.zeros(wrong, np.int64),
        "wrong_named": np.ones(wrong, np.int64),
        "wrong_sure": np.linspace(1, 0.5, wrong).astype(np.float32),
        "points": rng.standard_normal((2000, 2)).astype(np.float32) + labels[:, None],
        "points_label": labels,
        "points_how": np.array("t-SNE"),
    }


@pytest.mark.parametrize("classes", [2, 10, 150])
def test_pictures_are_small_files_whatever_the_number_of_classes(classes: int) -> None:
    held = pictures(classes)
    for content in (confusion_matrix(held), feature_map(held)):
        assert len(content) < 60_000
        assert min(Image.open(io.BytesIO(content)).size) > 150


def test_a_row_of_the_matrix_is_dark_where_its_class_is_named() -> None:
    """Of two classes, all of the first are named the second, and all of the second as well: the right half is dark."""
    pixels = np.asarray(Image.open(io.BytesIO(confusion_matrix(pictures(2)))).convert("RGB")).astype(int)
    blue = (pixels[:, :, 2] - pixels[:, :, 0] > 60).mean(0)
    dark = np.flatnonzero(blue > 0.3)
    assert dark.min() > 0.4 * pixels.shape[1]


def test_the_most_frequent_confusions_are_said_in_words() -> None:
    assert confused_words(pictures(3)) == ["class 0 named class 1: 40 of 40"]


def test_each_wrong_photo_is_shown_with_two_lines() -> None:
    one, seven = (wrong_photos(pictures(2, count)) for count in (1, 7))
    assert one.size == (150, 188)
    assert seven.size == (6 * 160 - 10, 2 * 188)
    assert (np.asarray(one)[:150] != 255).any()
    assert (np.asarray(one)[151:188] < 128).any()
