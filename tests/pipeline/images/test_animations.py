"""Animated PNGs: the default image alone is decoded, and damage in the animation never reaches a decoder."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.images.layout import without_animation
from tests.pipeline.images.headers import header
from tests.pipeline.made_images import encode, engine, photo, request


@pytest.mark.parametrize("name", ["cpu", "dali"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
@pytest.mark.parametrize("default_image", [False, True])
def test_of_an_animated_png_the_default_image_alone_is_decoded(mode: str, default_image: bool, name: str) -> None:
    plain = photo().convert(mode)
    more = [plain.rotate(90), plain.rotate(180)]
    animated = encode(plain, "PNG", save_all=True, append_images=more, default_image=default_image)
    files = [animated, encode(plain, "PNG")]
    pixels, failures = engine(name).run(request(files))
    assert not failures
    assert np.array_equal(*pixels["image"])
    assert header(animated).encoded == without_animation(animated)
    assert header(files[1]).encoded is files[1], "a file without an animation is not copied"


def test_damage_in_an_animation_never_reaches_a_decoder() -> None:
    whole = encode(photo(), "PNG", save_all=True, append_images=[photo().rotate(90)])
    undamaged = header(whole).encoded
    for kind in (b"acTL", b"fcTL", b"fdAT"):
        at = whole.rindex(kind) + 8
        assert header(whole[:at] + b"\xee\xee" + whole[at + 2 :]).encoded == undamaged
