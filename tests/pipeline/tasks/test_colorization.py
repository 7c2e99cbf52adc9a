"""Colorization: the network sees the brightness; the untouched crop is the label."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.labels import Pixels
from pipeline.tasks.colorization import Colorization
from tests.pipeline.made_images import engine, good, request


@pytest.mark.parametrize("name", ["cpu", "dali"])
def test_the_input_is_the_brightness_of_the_crop(name: str) -> None:
    pixels, _ = engine(name, {"colorization": Colorization()}, 48).run(request([good()["jpeg"]], drawn={"colorization": {}}))
    expected = pixels["image"].astype(float) @ [0.299, 0.587, 0.114]
    assert pixels["colorization.input"].shape == (1, 48, 48, 1)
    assert np.abs(pixels["colorization.input"][..., 0] - expected).max() <= 1


def test_the_label_is_the_colour_of_the_crop_itself() -> None:
    assert Colorization().label_kind() == Pixels(target="image", channels="chroma")
