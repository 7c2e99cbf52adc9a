"""The codec libraries log nothing about bad images, which the quarantine lists."""

from __future__ import annotations

import pytest

from tests.pipeline.children import run_python


@pytest.mark.parametrize("engine", ["cpu", "dali"])
def test_bad_images_are_not_shouted_about(engine: str) -> None:
    script = """
        import sys
        from tests.pipeline.rendering.test_renderer import BAD, recipe, sample
        from pipeline.rendering.renderer import Renderer
        names = ["text", "truncated jpeg", "truncated png", "truncated webp", "truncated tiff", "truncated bmp", "truncated ppm"]
        pairs = Renderer(recipe(sys.argv[1]))([sample(name, BAD[name]) for name in names], 0)
        print(len(pairs.failures))
    """
    done = run_python(script, engine)
    assert done.stdout == "7\n"
    assert done.stderr == ""
